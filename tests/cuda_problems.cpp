// Runs the CUDA kernels on random problems whose buffers end exactly where they should, in the emulator:
// see test_cuda_instrumented.py. What is written is not compared; tensors are poisoned with NaN first.
//
//     cuda_problems FORM PROBLEMS [FIRST [SKIP]]
//     cuda_problems FORM KxVxTYPE
//
// FORM is general, chunkwise or recurrent (of which K alone counts); the second line runs two problems of usual sizes, TYPE being 0 (fp32),
// 2 (bf16) or 3 (fp16). Prints the barriers that ran, or, with a barrier to SKIP or findings,
// what was found; exits with 1 if an output is not finite and 3 if there are findings or errors.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "emulator.h"
#include "options.h"

using namespace fwm;

namespace {

std::mt19937 generator;
Index draw(Index low, Index high) {
  return std::uniform_int_distribution<Index>(low, high)(generator);
}
constexpr float kUnwritten = std::numeric_limits<float>::quiet_NaN();

// A heap block of exactly the size asked for: any step over its end is reported. It begins where a
// sector does, as a GPU's allocations.
class Memory {
 public:
  explicit Memory(Index bytes) : bytes_(bytes) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, bytes > 0 ? std::size_t(bytes) : 1)) std::abort();
    data_.reset(static_cast<char*>(p));
  }
  char* data() const { return data_.get(); }
  Index size() const { return bytes_; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data_;
  Index bytes_;
};

struct Block {
  DType dtype;
  Memory memory;

  Block(DType dtype_, Index count, bool input, double low = -1, double high = 1)
      : dtype(dtype_), memory(count * (dtype_ == DType::f32 ? 4 : 2)) {
    std::uniform_real_distribution<double> uniform(low, high);
    for (Index i = 0; i < count; i++) set(i, input ? float(uniform(generator)) : kUnwritten);
  }
  void set(Index i, float x) {
    if (dtype == DType::f32) {
      reinterpret_cast<float*>(memory.data())[i] = x;
    } else if (dtype == DType::bf16) {
      reinterpret_cast<emulator::Bf16*>(memory.data())[i] = __float2bfloat16(x);
    } else {
      reinterpret_cast<emulator::Half*>(memory.data())[i] = __float2half(x);
    }
  }
  bool finite() const {
    const Index size = dtype == DType::f32 ? 4 : 2;
    for (Index i = 0; i < memory.size() / size; i++) {
      const char* p = memory.data() + i * size;
      const float x = dtype == DType::f32   ? *reinterpret_cast<const float*>(p)
                      : dtype == DType::bf16 ? __bfloat162float(*reinterpret_cast<const emulator::Bf16*>(p))
                                             : __half2float(*reinterpret_cast<const emulator::Half*>(p));
      if (!std::isfinite(x)) return false;
    }
    return true;
  }
  float* numbers() { return reinterpret_cast<float*>(memory.data()); }
  Rows rows(Index H, Index T, Index width) {
    Rows r;
    r.data = memory.data();
    r.n = H * T * width, r.h = T * width, r.t = width;
    return r;
  }
};

Causal random_sizes(bool delta, bool chunkwise) {
  Causal a;
  const Index d = chunkwise ? 16 * draw(1, 3) : draw(1, 3) == 1 ? draw(65, 140) : draw(1, 64);
  a.N = draw(1, 2), a.H = draw(1, 2);
  a.T = chunkwise ? draw(1, 140) : draw(1, 40);
  a.V = chunkwise ? 16 * draw(1, 5) : draw(1, 4) == 1 ? draw(65, 140) : draw(1, 64);
  a.dtype = static_cast<DType>(draw(0, 2) == 0 ? 0 : draw(2, 3));
  a.features.map = static_cast<FeatureMap>(draw(0, 2));
  a.features.nu = draw(1, std::min<Index>(2, 2 * d - 1));
  a.features.d = d;
  a.features.K = a.features.map == FeatureMap::dpfp ? 2 * a.features.nu * d : d;
  a.features.sum_norm = a.features.map != FeatureMap::none && draw(0, 1);
  if (a.features.map != FeatureMap::none && a.dtype != DType::f16) {
    a.attn_norm = static_cast<AttnNorm>(draw(0, delta ? 2 : 1));
  }
  return a;
}

bool run_problem(Causal a, bool delta, bool chunkwise) {
  const Index NH = a.N * a.H, T = a.T, V = a.V, K = a.features.K, d = a.features.d;
  const DType dtype = a.dtype, f32 = DType::f32;
  const bool norm = a.attn_norm != AttnNorm::none, states = norm || draw(0, 1);
  gpu::Form form;
  form.shared_limit = fwm_emulator_shared_limit();
  form.chunkwise = chunkwise && gpu::chunkwise_fits(a, form.shared_limit);

  Block q(dtype, NH * T * d, true), k(dtype, NH * T * d, true), v(dtype, NH * T * V, true);
  Block beta(f32, NH * T, true, 0, 0.5 / double(K)), y(dtype, NH * T * V, false);
  Block S(f32, NH * K * V, true), z(f32, NH * K, true, 1, 2);
  Block ST(f32, NH * K * V, false), zT(f32, NH * K, false), r(f32, NH * T * V, false);
  Block denominator(f32, NH * T, false), kappa(f32, NH * T, false);
  std::vector<char> mask(a.N * T);
  for (char& x : mask) x = draw(0, 3) > 0;
  mask.shrink_to_fit();
  a.q = q.rows(a.H, T, d), a.k = k.rows(a.H, T, d), a.v = v.rows(a.H, T, V), a.y = y.rows(a.H, T, V);
  if (delta) a.beta = beta.rows(a.H, T, 1), a.residual = r.memory.data();
  if (draw(0, 1)) a.mask = reinterpret_cast<const bool*>(mask.data());
  if (states) a.state = S.memory.data(), a.final_state = ST.memory.data();
  if (norm) a.normalizer = z.memory.data(), a.final_normalizer = zT.memory.data();
  if (norm) a.denominator = denominator.memory.data();
  if (a.attn_norm == AttnNorm::full) a.kappa = kappa.memory.data();
  Block work(f32, gpu::forward_workspace(a, form), false);
  gpu::forward(a, form, work.numbers(), nullptr);

  Block dy(dtype, NH * T * V, true), dq(dtype, NH * T * d, false), dk(dtype, NH * T * d, false);
  Block dv(dtype, NH * T * V, false), dbeta(f32, NH * T, false);
  Block dST(f32, NH * K * V, true), dzT(f32, NH * K, true), dS(f32, NH * K * V, false);
  Block dz(f32, NH * K, false);
  a.dy = dy.rows(a.H, T, V), a.dq = dq.rows(a.H, T, d), a.dk = dk.rows(a.H, T, d);
  a.dv = dv.rows(a.H, T, V);
  if (delta) a.dbeta = dbeta.rows(a.H, T, 1);
  if (states) a.d_final_state = dST.memory.data(), a.d_state = dS.memory.data();
  if (norm) a.d_final_normalizer = dzT.memory.data(), a.d_normalizer = dz.memory.data();
  Block room(f32, gpu::backward_workspace(a, form), false);
  gpu::backward(a, form, room.numbers(), nullptr);

  Step step;
  step.N = a.N, step.H = a.H, step.V = V, step.source_rows = a.N, step.delta = delta;
  step.dtype = dtype, step.features = a.features, step.attn_norm = a.attn_norm;
  step.q = a.q, step.k = a.k, step.v = a.v, step.y = a.y, step.beta = a.beta;
  std::vector<Index> rows(a.N);
  for (Index& x : rows) x = draw(0, a.N - 1);
  if (draw(0, 1)) step.rows = rows.data();
  step.state = S.memory.data(), step.normalizer = z.memory.data();
  Block fresh(f32, NH * K * V, false), fresh_z(f32, NH * K, false), divisors(f32, 2 * NH, false);
  step.new_state = fresh.memory.data(), step.new_normalizer = fresh_z.memory.data();
  gpu::step(step, divisors.numbers(), nullptr);
  return y.finite() && dq.finite() && dk.finite() && dv.finite() && fresh.finite() &&
         (!delta || dbeta.finite()) && (!states || (ST.finite() && dS.finite())) &&
         (!norm || (zT.finite() && dz.finite() && fresh_z.finite()));
}

// Sequences (N, H, T, .) that a mask thins out, and as much shared memory as zero to all matrices need.
struct Sequences {
  Index N, H, T, d;
  std::vector<char> mask;
  std::size_t limit;

  static Sequences random() {
    Sequences s{draw(1, 2), draw(1, 2), draw(1, 12), draw(0, 3) ? draw(1, 20) : draw(33, 70), {}, 0};
    if (draw(0, 1)) s.mask.resize(s.N * s.T);
    for (char& x : s.mask) x = draw(0, 3) > 0;
    s.mask.shrink_to_fit();
    const Index matrix = 4 * s.d * (3 * s.d + 4);
    s.limit = std::size_t(6000 + draw(0, 2) * matrix);
    return s;
  }
  Index all() const { return N * H; }
  Block rows(Index width, bool input) const { return Block(DType::f32, all() * T * width, input); }
  template <class Problem>
  Problem problem() const {
    Problem a;
    a.N = N, a.H = H, a.T = T, a.d = d;
    if (!mask.empty()) a.mask = reinterpret_cast<const bool*>(mask.data());
    return a;
  }
};

bool run_recurrent(const Sequences& s) {
  const Index d = s.d, M = 3 * d + 1;
  Recurrent a = s.problem<Recurrent>();
  const DType f32 = DType::f32;
  Block x = s.rows(M, true), R(f32, s.H * d * M, true, -0.2, 0.2), S(f32, s.all() * d * d, true);
  Block last(f32, s.all() * d, true), y = s.rows(d, false), ST(f32, s.all() * d * d, false);
  Block yT(f32, s.all() * d, false), kept = s.rows(M, false), feedback = s.rows(d, false);
  a.x = x.memory.data(), a.weights = R.memory.data(), a.state = S.memory.data(), a.last = last.memory.data();
  a.y = y.memory.data(), a.final_state = ST.memory.data(), a.final_last = yT.memory.data();
  a.kept = kept.memory.data(), a.feedback = feedback.memory.data();
  gpu::forward(a, s.limit, nullptr);
  Block dy = s.rows(d, true), dST(f32, s.all() * d * d, true), dyT(f32, s.all() * d, true);
  Block dx = s.rows(M, false), dS(f32, s.all() * d * d, false), d_last(f32, s.all() * d, false);
  a.dy = dy.memory.data(), a.d_final_state = dST.memory.data(), a.d_final_last = dyT.memory.data();
  a.dx = dx.memory.data(), a.d_state = dS.memory.data(), a.d_last = d_last.memory.data();
  Block room(f32, gpu::backward_workspace(a, s.limit), false);
  gpu::backward(a, s.limit, room.numbers(), nullptr);
  return y.finite() && ST.finite() && yT.finite() && kept.finite() && feedback.finite() && dx.finite() &&
         dS.finite() && d_last.finite();
}

bool run_self_referential(const Sequences& s) {
  const Index d = s.d, M = 3 * d + 4;
  SelfReferential a = s.problem<SelfReferential>();
  const DType f32 = DType::f32;
  Block x = s.rows(d, true), W(f32, s.all() * d * M, true), y = s.rows(d, false);
  Block WT(f32, s.all() * d * M, false), kept = s.rows(5 * d + 8, false);
  a.x = x.memory.data(), a.weights = W.memory.data(), a.y = y.memory.data();
  a.final_weights = WT.memory.data(), a.kept = kept.memory.data();
  gpu::forward(a, s.limit, nullptr);
  Block dy = s.rows(d, true), dWT(f32, s.all() * d * M, true), dx = s.rows(d, false);
  Block dW(f32, s.all() * d * M, false);
  a.dy = dy.memory.data(), a.d_final_weights = dWT.memory.data();
  a.dx = dx.memory.data(), a.d_weights = dW.memory.data();
  Block room(f32, gpu::backward_workspace(a, s.limit), false);
  gpu::backward(a, s.limit, room.numbers(), nullptr);
  return y.finite() && WT.finite() && kept.finite() && dx.finite() && dW.finite();
}

bool run_form(const std::string& form, int i) {
  if (form != "recurrent") {
    const bool chunkwise = form == "chunkwise";
    return run_problem(random_sizes(i % 2, chunkwise), i % 2, chunkwise);
  }
  const Sequences s = Sequences::random();
  return i % 2 ? run_recurrent(s) : run_self_referential(s);
}

}  // namespace

// Sum and delta with K = d and V as given, after which an observer says how memory was used.
int run_sizes(const char* sizes, const std::string& form) {
  int K = 0, V = 0, type = 0;
  if (std::sscanf(sizes, "%dx%dx%d", &K, &V, &type) != 3) return 2;
  generator.seed(1);
  const Sequences s{1, 2, 20, K, {}, fwm_emulator_shared_limit()};
  for (int delta = 0; delta < 2; delta++) {
    if (form == "recurrent") {
      if (!(delta ? run_recurrent(s) : run_self_referential(s))) return 1;
      continue;
    }
    Causal a;
    a.N = 1, a.H = 2, a.T = 64, a.V = V;
    a.features.d = a.features.K = K;
    a.dtype = static_cast<DType>(type);
    if (!run_problem(a, delta, form == "chunkwise")) return 1;
  }
  std::printf("%s", fwm_emulator_report());
  return 0;
}

int main(int count, char** arguments) {
  const std::string form = count > 1 ? arguments[1] : "general";
  if (count > 2 && std::strchr(arguments[2], 'x')) return run_sizes(arguments[2], form);
  const int problems = count > 2 ? std::atoi(arguments[2]) : 20;
  const int first = count > 3 ? std::atoi(arguments[3]) : 0;
  const bool skips = count > 4;
  if (skips) fwm_emulator_set("skip", arguments[4]);
  for (int i = first; i < first + problems; i++) {
    generator.seed(i);
    bool finite = false;
    try {
      finite = run_form(form, i);
    } catch (const std::exception& error) {
      std::printf("problem %d: %s\n", i, error.what());
      return 3;
    }
    if (fwm_emulator_finding_count() > 0) {
      std::printf("problem %d: %zu findings\n%s", i, fwm_emulator_finding_count(), fwm_emulator_report());
      return 3;
    }
    if (!finite && !skips) {
      std::printf("problem %d is not finite\n", i);
      return 1;
    }
  }
  std::printf("%s", fwm_emulator_barriers());
}
