// Updates that depend on what they read: a block goes through one sequence of one head, step by step.
// Matrices are (rows, columns) plain numbers, in shared memory as far as they fit. In one pass a thread
// has columns of them, in the next a warp has rows; barriers are between.
#pragma once

#include "../problem.h"
#include "warp.cuh"

namespace fwm {
namespace gpu {

constexpr int kSequentialThreads = 256;

// Call run(j) for j < count, one per thread.
template <class Run>
__device__ __forceinline__ void by_thread(int count, Run run) {
  for (int j = threadIdx.x; j < count; j += blockDim.x) run(j);
}
// Call run(i) for i < count, one per warp.
template <class Run>
__device__ __forceinline__ void by_warp(int count, Run run) {
  for (int i = threadIdx.x / 32; i < count; i += blockDim.x / 32) run(i);
}
// sum_j run(j) over a row, in all lanes.
template <class Run>
__device__ __forceinline__ float along_row(int columns, Run run) {
  float sum = 0.0f;
#pragma unroll 1  // a lane has few numbers of a row
  for (int j = threadIdx.x % 32; j < columns; j += 32) sum += run(j);
  return warp_sum(sum);
}
// sum_i run(i), two sums at a time, so that one addition need not wait for the other.
template <class Run>
__device__ __forceinline__ float sum_of(int count, Run run) {
  float even = 0.0f, odd = 0.0f;
  for (int i = 0; i + 1 < count; i += 2) even += run(i), odd += run(i + 1);
  if (count % 2) even += run(count - 1);
  return even + odd;
}
// sum_i x_i m_ij of a column.
__device__ __forceinline__ float column_sum(const float* m, int rows, int columns, int j, const float* x) {
  return sum_of(rows, [&](int i) { return x[i] * m[i * columns + j]; });
}

// A matrix that changes from step to step.
class Working {
 public:
  // A copy of `from`, to be read after a barrier: in shared memory, or, if it does not fit, at `place`.
  __device__ Working(SharedMemory& shared, bool fits, const float* from, float* place, int numbers)
      : data_(fits ? shared.take<float>(numbers) : place), numbers_(numbers) {
    by_thread(numbers, [&](int i) { data_[i] = from[i]; });
  }
  __device__ float* data() const { return data_; }
  // After a barrier.
  __device__ void leave(float* place) const {
    if (data_ == place) return;
    by_thread(numbers_, [&](int i) { place[i] = data_[i]; });
  }

 private:
  float* data_;
  int numbers_;
};

// How a kernel is launched: a block per sequence and head, with as many of its matrices in shared memory
// as fit beside its vectors.
struct Sequential {
  int threads = 0, matrices = 0;
  std::size_t bytes = 0;

  Sequential(Index wanted_threads, std::size_t vectors, int count, Index numbers, std::size_t limit)
      : bytes(vectors) {
    // Numbers of threads that registers can be shared out among without a rest.
    threads = wanted_threads <= 64 ? 64 : wanted_threads <= 128 ? 128 : kSequentialThreads;
    const std::size_t matrix = shared_bytes<float>(int(numbers));
    while (matrices < count && bytes + matrix <= limit) bytes += matrix, matrices++;
  }
};

}  // namespace gpu
}  // namespace fwm
