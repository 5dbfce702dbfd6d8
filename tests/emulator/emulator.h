// CUDA for a plain C++ compiler: what kernels use of it, run on the CPU and checked.
//
// Every CUDA thread is a fiber; blocks run one after another on the launching thread. A thread runs
// until it has to wait for others, so which one goes first is a choice: see Options::order.
// No atomics and no static __shared__ arrays, on purpose: the kernels must be deterministic, and
// only SharedMemory's arrays have guards between them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "options.h"
#include "storage_types.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __shared__ _Pragma("GCC error \"shared arrays come from fwm::gpu::SharedMemory\"")

using cudaStream_t = void*;

namespace fwm {
namespace emulator {

// A place in a kernel. As a default argument, here() is the caller's place.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// What FWM_GPU_LAUNCH launches, and where.
struct Launch {
  const char* kernel;
  const char* file;
  int line;
  const void* function = nullptr;
};

struct Builtins {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
extern Builtins builtins;  // of the thread that runs

// Stops the launch with an error that names the thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

void sync_block(Site site);
void sync_warp(unsigned mask, Site site);

// Every lane in `mask` calls this with its own `argument`; the last one to arrive runs `action`
// over all of them, before any returns. It orders no memory accesses, as CUDA's shuffles do not.
using Action = void (*)(void* const* arguments, unsigned mask);
void warp_collective(const char* name, unsigned mask, void* argument, Action action, Site site);

// The value of the lane `source` in its group of `width` lanes; its own where that is outside.
std::uint64_t shuffle_bits(const char* name, unsigned mask, std::uint64_t bits, int source,
                           Site site);
enum class Shuffle { index, exclusive_or, down, up };
int shuffle_source(Shuffle kind, int operand, int width, Site site);

void* shared_array(std::size_t offset, std::size_t bytes, int index);
void copy_async(void* shared, const void* source, int bytes, Site site = Site::here());
void copy_async_wait_all();

// Runs body(parameters) as every thread of the grid. The parameters are no global memory: accesses
// to them are not traced.
void run(const Launch& launch, dim3 grid, dim3 block, std::size_t shared,
         void (*body)(const void* parameters), const void* parameters, std::size_t parameter_bytes);

template <class... Parameters>
void launch(Launch launch, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
            cudaStream_t, std::decay_t<Parameters>... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  const Call call{kernel, std::tuple<Parameters...>(arguments...)};
  const auto body = [](const void* untyped) {
    const Call& call = *static_cast<const Call*>(untyped);
    std::apply(call.kernel, call.parameters);
  };
  launch.function = reinterpret_cast<const void*>(kernel);
  run(launch, grid, block, shared, body, &call, sizeof call);
}

template <class T>
T shuffle(const char* name, Shuffle kind, unsigned mask, T value, int operand, int width,
          Site site) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "cannot be shuffled");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle_bits(name, mask, bits, shuffle_source(kind, operand, width, site), site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulator
}  // namespace fwm

static constexpr const uint3& threadIdx = fwm::emulator::builtins.thread;
static constexpr const uint3& blockIdx = fwm::emulator::builtins.block;
static constexpr const dim3& blockDim = fwm::emulator::builtins.block_size;
static constexpr const dim3& gridDim = fwm::emulator::builtins.grid_size;

#define FWM_SITE ::fwm::emulator::Site site = ::fwm::emulator::Site::here()

inline void __syncthreads(FWM_SITE) { fwm::emulator::sync_block(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, FWM_SITE) {
  fwm::emulator::sync_warp(mask, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FWM_SITE) {
  using fwm::emulator::Shuffle;
  return fwm::emulator::shuffle("__shfl_sync", Shuffle::index, mask, value, source, width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, FWM_SITE) {
  return fwm::emulator::shuffle("__shfl_xor_sync", fwm::emulator::Shuffle::exclusive_or, mask,
                                value, with, width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, FWM_SITE) {
  return fwm::emulator::shuffle("__shfl_down_sync", fwm::emulator::Shuffle::down, mask, value,
                                static_cast<int>(by), width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, FWM_SITE) {
  return fwm::emulator::shuffle("__shfl_up_sync", fwm::emulator::Shuffle::up, mask, value,
                                static_cast<int>(by), width, site);
}

template <class T>
__forceinline__ T __ldg(const T* p) {
  return *p;
}

#define FWM_MIN_MAX(T)                               \
  inline T min(T a, T b) { return a < b ? a : b; }   \
  inline T max(T a, T b) { return a > b ? a : b; }
FWM_MIN_MAX(int)
FWM_MIN_MAX(unsigned)
FWM_MIN_MAX(long)
FWM_MIN_MAX(unsigned long)
FWM_MIN_MAX(long long)
FWM_MIN_MAX(unsigned long long)
#undef FWM_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// Macros, because glibc declares functions of some of these names.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __fdividef(x, y) ((x) / (y))
#define __frcp_rn(x) (1.0f / (x))
#define rsqrtf(x) (1.0f / sqrtf(x))
