#include "normalizer.cuh"
#include "passes.cuh"

namespace fwm {
namespace gpu {

void normalizer(const Causal& a, const Index* rows, cudaStream_t stream) {
  FWM_GPU_LAUNCH(normalizer_kernel, dim3(unsigned(a.N * a.H)), dim3(kNormalizerThreads),
                 NormalizerTiles::bytes(a.features), stream, a, rows);
}

}  // namespace gpu
}  // namespace fwm
