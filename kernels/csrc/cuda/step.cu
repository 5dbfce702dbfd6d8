#include "launch.h"
#include "passes.cuh"
#include "step.cuh"

namespace fwm {
namespace gpu {

void step(const Step& a, float* divisors, void* stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const float *denominator = nullptr, *kappa = nullptr;
  if (a.attn_norm != AttnNorm::none) {
    Causal one;
    one.N = a.N, one.H = a.H, one.T = 1, one.V = a.V;
    one.dtype = a.dtype, one.features = a.features, one.attn_norm = a.attn_norm;
    one.q = a.q, one.k = a.k, one.mask = a.mask;
    one.normalizer = a.normalizer, one.final_normalizer = a.new_normalizer;
    one.denominator = divisors;
    if (a.attn_norm == AttnNorm::full) one.kappa = divisors + a.N * a.H;
    normalizer(one, a.rows, stream);
    denominator = divisors, kappa = static_cast<const float*>(one.kappa);
  }
  if (a.features.K <= 256) {
    launch_step<16, 1>(a, denominator, kappa, stream);
  } else if (a.features.K <= 512) {
    launch_step<32, 2>(a, denominator, kappa, stream);
  } else {
    launch_step<32, 4>(a, denominator, kappa, stream);
  }
}

}  // namespace gpu
}  // namespace fwm
