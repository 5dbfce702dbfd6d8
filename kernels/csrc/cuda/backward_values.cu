#include "backward_values.cuh"
#include "passes.cuh"

namespace fwm {
namespace gpu {

void backward_values(const Causal& a, const BackwardWorkspace& kept, cudaStream_t stream) {
  a.beta ? launch_backward_values<true>(a, kept, stream)
         : launch_backward_values<false>(a, kept, stream);
}

void backward_scalars(const Causal& a, const BackwardWorkspace& kept, cudaStream_t stream) {
  a.beta ? launch_backward_scalars<true>(a, kept, stream)
         : launch_backward_scalars<false>(a, kept, stream);
}

}  // namespace gpu
}  // namespace fwm
