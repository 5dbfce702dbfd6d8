// The CUDA side as plain functions: no torch, no CUDA header. Tensors are on the device, what has no
// strides is fp32; a.N, a.H, a.V and a.features.K are positive, K at most kMaxFeatures; N H and T are
// less than 2^31.
#pragma once

#include <cstddef>

#include "../problem.h"

namespace fwm {
namespace gpu {

constexpr int kMaxFeatures = 1024;

// Which kernels run. The general ones take any size and compute in fp32. The chunkwise ones multiply
// bf16, fp16 or (of fp32 tensors) tf32 numbers by tensor cores; K and V must be multiples of 16 up to
// 256, their tiles must fit the shared memory that a block can have, and attention normalisation needs
// a wider range than fp16's.
struct Form {
  bool chunkwise = false;
  std::size_t shared_limit = 0;
};
bool chunkwise_fits(const Causal& a, std::size_t shared_limit);

// causal_sum or causal_delta (with a.beta). With attention normalisation a.denominator, and of the
// kind `full` a.kappa, must be given: they are read back. A workspace is device memory of as many
// fp32 numbers as its function says.
Index forward_workspace(const Causal& a, const Form& form);
void forward(const Causal& a, const Form& form, float* workspace, void* stream);
Index backward_workspace(const Causal& a, const Form& form);
void backward(const Causal& a, const Form& form, float* workspace, void* stream);

// With attention normalisation `divisors` has room for 2 N H numbers. With `rows`, states are read
// from other places than they are written to.
void step(const Step& a, float* divisors, void* stream);

// Updates that depend on what they read: any sizes, fp32; the launchers fit themselves to the shared memory
// that a block can have.
void forward(const Recurrent& a, std::size_t shared_limit, void* stream);
Index backward_workspace(const Recurrent& a, std::size_t shared_limit);
void backward(const Recurrent& a, std::size_t shared_limit, float* workspace, void* stream);
void forward(const SelfReferential& a, std::size_t shared_limit, void* stream);
Index backward_workspace(const SelfReferential& a, std::size_t shared_limit);
void backward(const SelfReferential& a, std::size_t shared_limit, float* workspace, void* stream);

// The compute capabilities that the kernels are compiled for: "8.0 9.0+PTX".
const char* archs();

}  // namespace gpu
}  // namespace fwm
