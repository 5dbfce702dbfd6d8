// Runs the CPU kernels on random problems whose buffers end exactly where they should, to be built
// with -fsanitize=address,undefined: see test_kernels_sanitized.py. Prints how many problems ran.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu/table.h"

using namespace fwm;

namespace {

std::mt19937 generator(1);
Index draw(Index low, Index high) {
  return std::uniform_int_distribution<Index>(low, high)(generator);
}

// A heap block of exactly the size asked for: any step over its end is reported.
template <class F>
struct Block {
  std::vector<F> memory;
  explicit Block(Index count, double low = -1, double high = 1) : memory(count) {
    std::uniform_real_distribution<double> uniform(low, high);
    for (F& x : memory) x = F(uniform(generator));
    memory.shrink_to_fit();
  }
  Rows rows(Index H, Index T, Index width) {
    Rows r;
    r.data = memory.data();
    r.n = H * T * width, r.h = T * width, r.t = width;
    return r;
  }
  bool finite() const {
    for (F x : memory) {
      if (!std::isfinite(double(x))) return false;
    }
    return true;
  }
};

template <class F>
bool run_problem(const Kernels& kernels, bool delta) {
  constexpr bool fp64 = sizeof(F) == 8;
  Causal a;
  a.N = draw(1, 2), a.H = draw(1, 2), a.T = draw(1, 70), a.V = draw(1, 70);
  a.dtype = fp64 ? DType::f64 : DType::f32;
  const Index d = draw(1, 40), NH = a.N * a.H, T = a.T, V = a.V;
  a.features.map = static_cast<FeatureMap>(draw(0, 2));
  a.features.nu = draw(1, std::min<Index>(3, 2 * d - 1));
  a.features.sum_norm = draw(0, 1);
  a.features.d = d;
  a.features.K = a.features.map == FeatureMap::dpfp ? 2 * a.features.nu * d : d;
  const bool positive = a.features.map != FeatureMap::none;
  if (!positive) a.features.sum_norm = false;
  a.attn_norm = positive ? static_cast<AttnNorm>(draw(0, delta ? 2 : 1)) : AttnNorm::none;
  const bool states = draw(0, 1), norm = a.attn_norm != AttnNorm::none;
  a.quadratic = !states && draw(0, 1);
  const Index K = a.features.K;

  Block<F> q(NH * T * d), k(NH * T * d), v(NH * T * V), beta(NH * T, 0, 0.5 / double(K)), y(NH * T * V);
  Block<F> S(NH * K * V), z(NH * K, 1, 2), ST(NH * K * V), zT(NH * K);
  Block<F> r(NH * T * V), denominator(NH * T), kappa(NH * T);
  std::vector<char> mask(a.N * T);
  for (char& x : mask) x = draw(0, 3) > 0;
  a.q = q.rows(a.H, T, d), a.k = k.rows(a.H, T, d), a.v = v.rows(a.H, T, V), a.y = y.rows(a.H, T, V);
  a.beta = beta.rows(a.H, T, 1);
  if (draw(0, 1)) a.mask = reinterpret_cast<const bool*>(mask.data());
  if (states) {
    a.state = S.memory.data(), a.final_state = ST.memory.data();
    if (norm) a.normalizer = z.memory.data(), a.final_normalizer = zT.memory.data();
  }
  if (delta) a.residual = r.memory.data();
  if (norm) a.denominator = denominator.memory.data();
  if (a.attn_norm == AttnNorm::full) a.kappa = kappa.memory.data();
  const Index lanes = 2 * kernels.vector_bytes / Index(sizeof(F));
  const Index panels = (V + lanes - 1) / lanes;
  const Index columns = a.quadratic ? panels * lanes : draw(1, panels) * lanes;
  const Index groups = (panels * lanes + columns - 1) / columns;
  kernels.causal_forward[fp64][delta](a, columns, 0, NH * groups);

  Block<F> dy(NH * T * V), dq(NH * T * d), dk(NH * T * d), dv(NH * T * V), dbeta(NH * T);
  Block<F> dST(NH * K * V), dzT(NH * K), dS(NH * K * V), dz(NH * K);
  a.dy = dy.rows(a.H, T, V), a.dq = dq.rows(a.H, T, d), a.dk = dk.rows(a.H, T, d);
  a.dv = dv.rows(a.H, T, V), a.dbeta = dbeta.rows(a.H, T, 1);
  if (states) {
    a.d_final_state = dST.memory.data(), a.d_state = dS.memory.data();
    if (norm) a.d_final_normalizer = dzT.memory.data(), a.d_normalizer = dz.memory.data();
  }
  kernels.causal_backward[fp64][delta](a, 0, NH);

  Step step;
  step.N = a.N, step.H = a.H, step.V = V, step.source_rows = a.N, step.delta = delta;
  step.dtype = a.dtype, step.features = a.features, step.attn_norm = a.attn_norm;
  step.q = a.q, step.k = a.k, step.v = a.v, step.beta = a.beta, step.y = a.y;
  std::vector<Index> rows(a.N);
  for (Index& x : rows) x = draw(0, a.N - 1);
  const bool gather = draw(0, 1), in_place = draw(0, 1);
  if (gather) step.rows = rows.data();
  step.state = S.memory.data(), step.normalizer = z.memory.data();
  step.new_state = in_place ? S.memory.data() : ST.memory.data();
  step.new_normalizer = in_place ? z.memory.data() : zT.memory.data();
  kernels.step[fp64](step, 0, gather && in_place ? a.H : NH);

  Map map;
  map.count = NH * T, map.dtype = a.dtype, map.features = a.features;
  Block<F> phi(NH * T * K), dphi(NH * T * K), dx(NH * T * d);
  map.x = q.memory.data(), map.phi = phi.memory.data();
  kernels.map_rows[fp64](map, 0, map.count);
  map.dphi = dphi.memory.data(), map.dx = dx.memory.data();
  kernels.map_rows[fp64](map, 0, map.count);

  Favor favor;
  Block<F> features(NH * T * 2 * d), d_features(NH * T * 2 * d), offset(NH * T), d_offset(NH * T);
  favor.count = NH * T, favor.m = d, favor.cap = 40;
  favor.u = q.memory.data(), favor.offset = offset.memory.data();
  favor.phi = features.memory.data();
  kernels.favor_rows[fp64](favor, 0, favor.count);
  favor.dphi = d_features.memory.data(), favor.du = dx.memory.data();
  favor.d_offset = d_offset.memory.data();
  kernels.favor_rows[fp64](favor, 0, favor.count);

  Rescaled rescaled;
  Block<F> gram(NH * T * T), history(NH * T * T), d_gram(NH * T * T), d_decay(NH * T);
  rescaled.count = NH, rescaled.T = T, rescaled.V = V;
  rescaled.gram = gram.memory.data(), rescaled.v = v.memory.data(), rescaled.beta = beta.memory.data();
  rescaled.residual = r.memory.data(), rescaled.history = history.memory.data();
  kernels.rescaled_forward[fp64](rescaled, 0, NH);
  rescaled.d_residual = dy.memory.data(), rescaled.d_decay = d_decay.memory.data();
  rescaled.d_gram = d_gram.memory.data(), rescaled.d_v = dv.memory.data();
  rescaled.d_beta = dbeta.memory.data();
  kernels.rescaled_backward[fp64](rescaled, 0, NH);

  const Index size = draw(1, 20), M = 3 * size + 1, W = 3 * size + 4;
  Recurrent rdn;
  Block<F> x(NH * T * M), R(a.H * size * M), S0(NH * size * size), y0(NH * size), out(NH * T * size);
  Block<F> S1(NH * size * size), y1(NH * size), s(NH * T * size);
  const Index wide = kernels.vector_bytes / Index(sizeof(F)), items = (a.N + wide - 1) / wide * a.H;
  Block<F> kept(items * wide * T * M), self_kept(items * wide * T * (5 * size + 8));
  rdn.N = a.N, rdn.H = a.H, rdn.T = T, rdn.d = size, rdn.mask = a.mask;
  rdn.x = x.memory.data(), rdn.weights = R.memory.data(), rdn.state = S0.memory.data();
  rdn.last = y0.memory.data(), rdn.y = out.memory.data(), rdn.final_state = S1.memory.data();
  rdn.final_last = y1.memory.data(), rdn.kept = kept.memory.data();
  rdn.feedback = s.memory.data();
  kernels.recurrent_forward[fp64](rdn, 0, items);
  Block<F> d_out(NH * T * size), d_S1(NH * size * size), d_y1(NH * size);
  Block<F> d_x(NH * T * M), d_S0(NH * size * size), d_y0(NH * size);
  rdn.dy = d_out.memory.data(), rdn.d_final_state = d_S1.memory.data();
  rdn.d_final_last = d_y1.memory.data(), rdn.dx = d_x.memory.data();
  rdn.d_state = d_S0.memory.data(), rdn.d_last = d_y0.memory.data();
  kernels.recurrent_backward[fp64](rdn, 0, items);

  SelfReferential srwm;
  Block<F> xs(NH * T * size), W0(NH * size * W), W1(NH * size * W);
  Block<F> d_xs(NH * T * size), d_W1(NH * size * W), d_W0(NH * size * W);
  srwm.N = a.N, srwm.H = a.H, srwm.T = T, srwm.d = size, srwm.mask = a.mask;
  srwm.x = xs.memory.data(), srwm.weights = W0.memory.data(), srwm.y = out.memory.data();
  srwm.final_weights = W1.memory.data(), srwm.kept = self_kept.memory.data();
  kernels.self_referential_forward[fp64](srwm, 0, items);
  srwm.dy = d_out.memory.data(), srwm.d_final_weights = d_W1.memory.data();
  srwm.dx = d_xs.memory.data(), srwm.d_weights = d_W0.memory.data();
  kernels.self_referential_backward[fp64](srwm, 0, items);
  if (!d_x.finite() || !d_S0.finite() || !d_xs.finite() || !d_W0.finite()) return false;
  return d_gram.finite() && y.finite() && dq.finite() && dk.finite() && dv.finite() && dbeta.finite() && dS.finite() &&
         ST.finite() && dx.finite();
}

}  // namespace

int main(int count, char** arguments) {
  const int problems = count > 1 ? std::atoi(arguments[1]) : 100;
  const Kernels* kernels = choose_kernels();
  if (!kernels) return 2;
  for (int i = 0; i < problems; i++) {
    const bool delta = i % 2;
    if (!(i % 4 < 2 ? run_problem<float>(*kernels, delta) : run_problem<double>(*kernels, delta))) {
      std::printf("problem %d is not finite\n", i);
      return 1;
    }
  }
  std::printf("%s %d\n", kernels->isa, problems);
}
