#include "launch.h"
#include "self_referential.cuh"

namespace fwm {
namespace gpu {

Index backward_workspace(const SelfReferential& a, std::size_t shared_limit) {
  return SelfReferentialPlan(a, true, shared_limit).matrices > 1 ? 0 : a.N * a.H * a.d * (3 * a.d + 4);
}

void forward(const SelfReferential& a, std::size_t shared_limit, void* stream) {
  const SelfReferentialPlan plan(a, false, shared_limit);
  FWM_GPU_LAUNCH(self_referential_forward_kernel, dim3(unsigned(a.N * a.H)), dim3(plan.threads), plan.bytes,
                 static_cast<cudaStream_t>(stream), a, plan.matrices);
}

void backward(const SelfReferential& a, std::size_t shared_limit, float* workspace, void* stream) {
  const SelfReferentialPlan plan(a, true, shared_limit);
  FWM_GPU_LAUNCH(self_referential_backward_kernel, dim3(unsigned(a.N * a.H)), dim3(plan.threads), plan.bytes,
                 static_cast<cudaStream_t>(stream), a, workspace, plan.matrices);
}

}  // namespace gpu
}  // namespace fwm
