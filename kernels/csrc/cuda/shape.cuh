// How a block shares out a state: each thread holds a slice of one column in registers.
#pragma once

#include "../problem.h"
#include "gpu.cuh"

namespace fwm {
namespace gpu {

// A state of up to kRows rows: Split neighbouring lanes share a column, Slice numbers each. A block
// holds kColumns columns. Products over rows are finished by log2(Split) shuffles, and every thread
// has some independent sums to add while they are under way.
template <int Slice_, int Split_>
struct Shape {
  static constexpr int Slice = Slice_, Split = Split_;
  static constexpr int kRows = Slice * Split;
  static constexpr int kThreads = Split == 32 ? 256 : 128;
  static constexpr int kColumns = kThreads / Split;
  // Blocks per multiprocessor that registers leave room for: half of its threads where slices are
  // short.
  static constexpr int kBlocks = (kRows <= 64 ? 1024 : 512) / kThreads;
  // Time steps that a pass over keys and queries prepares at a time: a constant, so that where its
  // tiles lie costs no registers.
  static constexpr int kSteps = kRows <= 64 ? 16 : kRows <= 1024 ? 2048 / kRows : 1;
  static_assert(Slice % 4 == 0 && 32 % Split == 0, "rows are read four at a time");
};

constexpr int kMaxRows = 1024;

// Call run(Shape{}) with the smallest shape that holds `rows`; 0 < rows <= kMaxRows.
template <class Run>
void with_shape(Index rows, Run run) {
  if (rows <= 32) return run(Shape<8, 4>{});
  if (rows <= 64) return run(Shape<8, 8>{});
  if (rows <= 128) return run(Shape<8, 16>{});
  if (rows <= 256) return run(Shape<16, 16>{});
  if (rows <= 512) return run(Shape<16, 32>{});
  return run(Shape<32, 32>{});
}

// How many time steps a block prepares at a time where rows may be long: as many as leave room for
// other blocks on the same multiprocessor. bytes(steps) is what they need of shared memory.
template <class Bytes>
int steps_that_fit(Index T, Bytes bytes) {
  constexpr std::size_t kRoom = 19 << 10;
  int steps = 32;
  while (steps > 1 && (bytes(steps) > kRoom || steps / 2 >= T)) steps /= 2;
  return steps;
}

// A thread's slice of a row of kRows numbers in shared memory. Lanes that share a column take turns by
// four numbers: they read neighbouring 16 bytes, and all others read the same ones.
template <class Shape>
struct Slice {
  float x[Shape::Slice];

  __device__ __forceinline__ Slice() {}
  __device__ __forceinline__ explicit Slice(const float* row) {
    const float4* from = reinterpret_cast<const float4*>(row) + part();
#pragma unroll
    for (int i = 0; i < Shape::Slice / 4; i++) {
      const float4 four = from[i * Shape::Split];
      x[4 * i] = four.x, x[4 * i + 1] = four.y, x[4 * i + 2] = four.z, x[4 * i + 3] = four.w;
    }
  }
  __device__ __forceinline__ static int part() { return threadIdx.x % Shape::Split; }
  __device__ __forceinline__ static int column() { return threadIdx.x / Shape::Split; }
  // The row of the state that element i belongs to.
  __device__ __forceinline__ static int row(int i) {
    return 4 * (part() + Shape::Split * (i / 4)) + i % 4;
  }
};

// A thread's part of one column of the state.
template <class Shape>
struct Column {
  float s[Shape::Slice];

  // The columns begin + column() of a state stored as (rows, columns) or, transposed, (columns, rows).
  __device__ void load(const float* state, int rows, Index row_stride, int columns,
                       Index column_stride, int begin) {
    const int c = begin + Slice<Shape>::column();
#pragma unroll
    for (int i = 0; i < Shape::Slice; i++) {
      const int r = Slice<Shape>::row(i);
      s[i] = state && r < rows && c < columns ? state[r * row_stride + c * column_stride] : 0.0f;
    }
  }
  __device__ void store(float* state, int rows, Index row_stride, int columns, Index column_stride,
                        int begin) const {
    const int c = begin + Slice<Shape>::column();
#pragma unroll
    for (int i = 0; i < Shape::Slice; i++) {
      const int r = Slice<Shape>::row(i);
      if (r < rows && c < columns) state[r * row_stride + c * column_stride] = s[i];
    }
  }
  // To and from a place of the block's own, where neighbouring threads have neighbouring numbers.
  __device__ void keep(float* place) const {
#pragma unroll
    for (int i = 0; i < Shape::Slice; i++) place[i * Shape::kThreads + threadIdx.x] = s[i];
  }
  __device__ void take(const float* place) {
#pragma unroll
    for (int i = 0; i < Shape::Slice; i++) s[i] = place[i * Shape::kThreads + threadIdx.x];
  }

  // The column's product with a row; the same number in all lanes that share the column.
  __device__ __forceinline__ float read(const Slice<Shape>& a) const {
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < Shape::Slice; i++) sum[i % 4] += s[i] * a.x[i];
    float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
#pragma unroll
    for (int lanes = Shape::Split / 2; lanes > 0; lanes /= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, lanes);
    }
    return total;
  }
  __device__ __forceinline__ void write(const Slice<Shape>& a, float x) {
#pragma unroll
    for (int i = 0; i < Shape::Slice; i++) s[i] += a.x[i] * x;
  }
};

}  // namespace gpu
}  // namespace fwm
