// The CUDA side as plain functions: no torch, no CUDA header. Tensors are on the device, what has no
// strides is fp32; a.N, a.H, a.V and a.features.K are positive, K at most kMaxFeatures; N H and T are
// less than 2^31.
#pragma once

#include "../problem.h"

namespace fwm {
namespace gpu {

constexpr int kMaxFeatures = 1024;

// causal_sum or causal_delta (with a.beta). With attention normalisation a.denominator, and of the
// kind `full` a.kappa, must be given: they are read back.
void forward(const Causal& a, void* stream);

// How many fp32 numbers of device memory `backward` needs to work in.
Index backward_workspace(const Causal& a);
void backward(const Causal& a, float* workspace, void* stream);

// With attention normalisation `divisors` has room for 2 N H numbers. With `rows`, states are read
// from other places than they are written to.
void step(const Step& a, float* divisors, void* stream);

// The compute capabilities that the kernels are compiled for: "8.0 9.0+PTX".
const char* archs();

}  // namespace gpu
}  // namespace fwm
