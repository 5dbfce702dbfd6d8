// The one include of every kernel. nvcc compiles the kernels for a GPU; a plain C++ compiler
// compiles the same source for the emulator of the tests (-I tests/emulator), which runs it on the
// CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

namespace fwm {
namespace gpu {

constexpr int kWarpSize = 32;

// ---- Parameters and checks ---------------------------------------------------------------

// A kernel's parameter that others may take by reference without a copy per thread; and what must hold
// unless a caller is wrong: a GPU stops with an error.
#if defined(__CUDACC__)
#define FWM_GPU_PARAMETER const __grid_constant__
#define FWM_GPU_CHECK(condition) \
  do {                           \
    if (!(condition)) __trap();  \
  } while (0)
#else
#define FWM_GPU_PARAMETER const
#define FWM_GPU_CHECK(condition)                                      \
  do {                                                                \
    if (!(condition)) ::fwm::emulator::fail("failed: " #condition); \
  } while (0)
#endif

// The same number, of which the compiler knows nothing: what is computed from it inside a loop is
// computed there, and takes no registers beyond.
__device__ __forceinline__ unsigned opaque(unsigned x) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// ---- Numbers as they are stored -----------------------------------------------------------------

#if defined(__CUDACC__)
using Bf16 = __nv_bfloat16;
using Half = __half;
#else
using emulator::Bf16;
using emulator::Half;
#endif

__host__ __device__ __forceinline__ float to_float(float x) { return x; }
__host__ __device__ __forceinline__ float to_float(Bf16 x) { return __bfloat162float(x); }
__host__ __device__ __forceinline__ float to_float(Half x) { return __half2float(x); }

// Rounds to nearest even.
template <class T>
__host__ __device__ __forceinline__ T from_float(float x);
template <>
__host__ __device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__host__ __device__ __forceinline__ Bf16 from_float<Bf16>(float x) {
  return __float2bfloat16(x);
}
template <>
__host__ __device__ __forceinline__ Half from_float<Half>(float x) {
  return __float2half(x);
}

// ---- Dynamic shared memory ----------------------------------------------------------------------

// What tensor cores ask of a tile's address; vector loads and copy_async ask for less.
constexpr std::size_t kSharedAlignment = 32;

// What take<T>(n) uses, for launchers.
template <class T>
__host__ __device__ constexpr std::size_t shared_bytes(int n) {
  return (sizeof(T) * n + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

#if defined(__CUDACC__)
__device__ __forceinline__ void* shared_array(std::size_t offset, std::size_t, int) {
  extern __shared__ __align__(128) unsigned char fwm_dynamic_shared_memory[];
  return fwm_dynamic_shared_memory + offset;
}
#else
using emulator::shared_array;
#endif

// Arrays in a block's dynamic shared memory, taken front to back. Every thread takes the same ones.
class SharedMemory {
 public:
  template <class T>
  __device__ __forceinline__ T* take(int n) {
    static_assert(alignof(T) <= kSharedAlignment, "shared memory is not aligned for this type");
    const std::size_t offset = used_;
    used_ += shared_bytes<T>(n);
    return static_cast<T*>(shared_array(offset, sizeof(T) * n, arrays_++));
  }

 private:
  std::size_t used_ = 0;
  int arrays_ = 0;  // only the emulator looks at it
};

// ---- Asynchronous copies ------------------------------------------------------------------------

#if defined(__CUDACC__)
// From global to shared memory; 4, 8 or 16 bytes, a constant, to and from multiples of it. Other
// threads see the copy after this one's copy_async_wait_all() and a barrier.
__device__ __forceinline__ void copy_async(void* shared, const void* source, int bytes) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(source) : "memory");
  } else if (bytes == 8) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(source) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(source) : "memory");
  }
}
__device__ __forceinline__ void copy_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
#else
using emulator::copy_async;
using emulator::copy_async_wait_all;
#endif

// ---- Launches -----------------------------------------------------------------------------------

#if defined(__CUDACC__)
// Errors stay in cudaGetLastError(), as a launch's own do.
template <class... Parameters>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
                   cudaStream_t stream, std::decay_t<Parameters>... arguments) {
  constexpr std::size_t without_asking = 48 << 10;
  if (shared > without_asking) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared));
  }
  kernel<<<grid, block, shared, stream>>>(arguments...);
}
#define FWM_GPU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::fwm::gpu::launch_kernel(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#else
#define FWM_GPU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                         \
  ::fwm::emulator::launch({#kernel, __FILE__, __LINE__}, kernel, grid, block, shared_bytes,    \
                          stream, __VA_ARGS__)
#endif

}  // namespace gpu
}  // namespace fwm
