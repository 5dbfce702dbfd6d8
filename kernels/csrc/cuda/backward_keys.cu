#include "backward_keys.cuh"
#include "passes.cuh"

namespace fwm {
namespace gpu {

void backward_keys(const Causal& a, const BackwardWorkspace& kept, const Slab& slab,
                   cudaStream_t stream) {
  a.beta ? launch_backward_keys<true>(a, kept, slab, stream)
         : launch_backward_keys<false>(a, kept, slab, stream);
}

}  // namespace gpu
}  // namespace fwm
