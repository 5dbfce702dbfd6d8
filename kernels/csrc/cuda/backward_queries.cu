#include "backward_queries.cuh"
#include "passes.cuh"

namespace fwm {
namespace gpu {

void backward_queries(const Causal& a, const BackwardWorkspace& kept, const Slab& slab,
                   cudaStream_t stream) {
  a.beta ? launch_backward_queries<true>(a, kept, slab, stream)
         : launch_backward_queries<false>(a, kept, slab, stream);
}

}  // namespace gpu
}  // namespace fwm
