#include "launch.h"
#include "recurrent.cuh"

namespace fwm {
namespace gpu {

Index backward_workspace(const Recurrent& a, std::size_t shared_limit) {
  return RecurrentPlan(a, true, shared_limit).matrices > 1 ? 0 : a.N * a.H * a.d * a.d;
}

void forward(const Recurrent& a, std::size_t shared_limit, void* stream) {
  const RecurrentPlan plan(a, false, shared_limit);
  FWM_GPU_LAUNCH(recurrent_forward_kernel, dim3(unsigned(a.N * a.H)), dim3(plan.threads), plan.bytes,
                 static_cast<cudaStream_t>(stream), a, plan.matrices);
}

void backward(const Recurrent& a, std::size_t shared_limit, float* workspace, void* stream) {
  const RecurrentPlan plan(a, true, shared_limit);
  FWM_GPU_LAUNCH(recurrent_backward_kernel, dim3(unsigned(a.N * a.H)), dim3(plan.threads), plan.bytes,
                 static_cast<cudaStream_t>(stream), a, workspace, plan.matrices);
}

}  // namespace gpu
}  // namespace fwm
