#include "forward.cuh"
#include "launch.h"
#include "passes.cuh"

namespace fwm {
namespace gpu {

Index forward_workspace(const Causal& a, const Form& form) {
  return form.chunkwise ? chunk_forward_workspace(a, form.shared_limit) : 0;
}

void forward(const Causal& a, const Form& form, float* workspace, void* stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  if (a.attn_norm != AttnNorm::none) normalizer(a, nullptr, stream);
  if (form.chunkwise) {
    chunk_forward(a, form.shared_limit, workspace, stream);
  } else if (a.beta) {
    launch_forward<true>(a, stream);
  } else {
    launch_forward<false>(a, stream);
  }
}

}  // namespace gpu
}  // namespace fwm
