// Calls the launchers for a problem of given sizes: see scripts/lib/cuda_launches.py. All tensors are the same
// zeros, so that with the emulator's option "execute" only small problems fit.
#include "cuda/launch.h"
#include "options.h"

namespace {

using namespace fwm;

alignas(256) float zeros[1 << 22];
void* const there = zeros;

Rows rows(Index heads, Index steps, Index width) {
  Rows rows;
  rows.data = there;
  rows.n = heads * steps * width, rows.h = steps * width, rows.t = width;
  return rows;
}

}  // namespace

// As scripts/lib/cuda_launches.py has it in ctypes.
struct LaunchProblem {
  Index N, H, T, d, K, V, nu;
  int delta, dtype, map, sum_norm, attn_norm;
  int chunkwise;
  Index shared_limit;  // of a block
};

namespace {

Causal causal(const LaunchProblem& p) {
  Causal a;
  a.N = p.N, a.H = p.H, a.T = p.T, a.V = p.V;
  a.dtype = DType(p.dtype), a.attn_norm = AttnNorm(p.attn_norm);
  a.features.map = FeatureMap(p.map), a.features.nu = p.nu, a.features.sum_norm = p.sum_norm;
  a.features.d = p.d, a.features.K = p.K;
  a.q = a.k = a.dq = a.dk = rows(a.H, a.T, p.d);
  a.v = a.y = a.dy = a.dv = rows(a.H, a.T, a.V);
  if (p.delta) a.beta = a.dbeta = rows(a.H, a.T, 1), a.residual = there;
  if (a.attn_norm != AttnNorm::none) a.denominator = there;
  if (a.attn_norm == AttnNorm::full) a.kappa = there;
  return a;
}

gpu::Form form(const LaunchProblem& p) {
  gpu::Form form;
  form.chunkwise = p.chunkwise, form.shared_limit = std::size_t(p.shared_limit);
  return form;
}

}  // namespace

extern "C" {

int fwm_chunkwise_fits(const LaunchProblem* p) {
  return gpu::chunkwise_fits(causal(*p), std::size_t(p->shared_limit));
}

const char* fwm_launch_causal(const LaunchProblem* p, int backward) {
  return fwm::emulator::error_of([&] {
    const Causal a = causal(*p);
    float* const workspace = static_cast<float*>(there);
    if (backward) {
      gpu::backward(a, form(*p), workspace, nullptr);
    } else {
      gpu::forward(a, form(*p), workspace, nullptr);
    }
  });
}

// How many fp32 numbers the launchers want to work in.
Index fwm_launch_workspace(const LaunchProblem* p, int backward) {
  const Causal a = causal(*p);
  return backward ? gpu::backward_workspace(a, form(*p)) : gpu::forward_workspace(a, form(*p));
}

const char* fwm_launch_step(const LaunchProblem* p) {
  return fwm::emulator::error_of([&] {
    Step a;
    a.N = a.source_rows = p->N, a.H = p->H, a.V = p->V, a.delta = p->delta;
    a.dtype = DType(p->dtype), a.attn_norm = AttnNorm(p->attn_norm);
    a.features.map = FeatureMap(p->map), a.features.nu = p->nu, a.features.sum_norm = p->sum_norm;
    a.features.d = p->d, a.features.K = p->K;
    a.q = a.k = rows(a.H, 1, p->d), a.v = a.y = rows(a.H, 1, a.V);
    if (p->delta) a.beta = rows(a.H, 1, 1);
    a.state = a.normalizer = there;
    a.new_state = a.new_normalizer = there;
    gpu::step(a, static_cast<float*>(there), nullptr);
  });
}

// The recurrent delta rule or, with `self`, self-referential weights: heads of d numbers.
const char* fwm_launch_recurrent(const LaunchProblem* p, int self, int backward) {
  return fwm::emulator::error_of([&] {
    const auto launch = [&](auto a) {
      const std::size_t limit = std::size_t(p->shared_limit);
      a.N = p->N, a.H = p->H, a.T = p->T, a.d = p->d;
      backward ? gpu::backward(a, limit, static_cast<float*>(there), nullptr) : gpu::forward(a, limit, nullptr);
    };
    self ? launch(SelfReferential{}) : launch(Recurrent{});
  });
}

}  // extern "C"
