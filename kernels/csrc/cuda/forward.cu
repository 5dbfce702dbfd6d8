#include "forward.cuh"
#include "launch.h"

namespace fwm {
namespace gpu {

void normalizer(const Causal&, const Index* rows, cudaStream_t);

void forward(const Causal& a, void* stream) {
  if (a.attn_norm != AttnNorm::none) normalizer(a, nullptr, static_cast<cudaStream_t>(stream));
  a.beta ? launch_forward<true>(a, static_cast<cudaStream_t>(stream))
         : launch_forward<false>(a, static_cast<cudaStream_t>(stream));
}

}  // namespace gpu
}  // namespace fwm
