// Blocks of time steps in shared memory: from rows of any dtype and strides, and back.
//
// What runs once per block of steps is a function that is called (FWM_GPU_CALL), not inlined: it is
// compiled once for all shapes of state, and the registers that it needs are not the recurrence's.
#pragma once

#include "../problem.h"
#include "gpu.cuh"

namespace fwm {
namespace gpu {

// Which sequence a block works on.
struct Head {
  unsigned n, h, index;  // less than 2^31, as a grid's blocks

  __device__ Head(Index H, unsigned head)
      : n(head / unsigned(H)), h(head % unsigned(H)), index(head) {}
  __device__ Index offset(const Rows& rows) const { return n * rows.n + h * rows.h; }
};

// `count` time steps after `first` ones; reversed, both are counted from the end.
struct Span {
  int T, first, count;
  bool reversed;

  __device__ Span(Index T_, int first_, int steps, bool reversed_)
      : T(int(T_)), first(first_), count(min(int(T_) - first_, steps)), reversed(reversed_) {}
  __device__ Index time(int i) const { return reversed ? T - 1 - first - i : first + i; }
  // Where a position's number is in (., T).
  __device__ Index at(unsigned row, Index t) const { return Index(row) * T + t; }
};

// Call run(F{}) with the storage type of rows.
template <class Run>
__device__ __forceinline__ void with_storage(DType dtype, Run run) {
  if (dtype == DType::bf16) return run(Bf16{});
  if (dtype == DType::f16) return run(Half{});
  run(float{});
}

// Call run(i, c) for i < rows and c < columns, once per pair, shared out over the block's threads:
// neighbours along a row.
template <class Run>
__device__ __forceinline__ void for_elements(int rows, int columns, Run run) {
  const int lanes = columns > 16 ? 32 : columns > 8 ? 16 : 8;
  for (int i = threadIdx.x / lanes; i < rows; i += blockDim.x / lanes) {
    for (int c = threadIdx.x % lanes; c < columns; c += lanes) run(i, c);
  }
}

// One number per time step, shared out over the block's threads.
template <class Run>
__device__ __forceinline__ void for_steps(const Span& span, Run run) {
  for (int i = threadIdx.x; i < span.count; i += blockDim.x) run(i, span.time(i));
}

// tile[i][c] = columns [begin, begin + width) of the rows; zeros up to `ld` and at masked steps.
FWM_GPU_CALL void load_tile(float* tile, int ld, Rows rows, DType dtype, Head head, Span span,
                            int begin, int width, const bool* mask = nullptr) {
  with_storage(dtype, [&](auto storage) {
    using F = decltype(storage);
    const F* from = static_cast<const F*>(rows.data) + head.offset(rows) + begin;
    for_elements(span.count, ld, [&](int i, int c) {
      const Index t = span.time(i);
      const bool there = c < width && (!mask || mask[span.at(head.n, t)]);
      tile[i * ld + c] = there ? to_float(from[t * rows.t + c]) : 0.0f;
    });
  });
}
FWM_GPU_CALL void store_tile(const float* tile, int ld, Rows rows, DType dtype, Head head, Span span,
                             int begin, int width) {
  with_storage(dtype, [&](auto storage) {
    using F = decltype(storage);
    F* to = static_cast<F*>(rows.data) + head.offset(rows) + begin;
    for_elements(span.count, width, [&](int i, int c) {
      to[span.time(i) * rows.t + c] = from_float<F>(tile[i * ld + c]);
    });
  });
}

// (N, H, T, width) fp32 without gaps, as rows.
__host__ __device__ inline Rows dense_rows(const void* data, Index H, Index T, Index width) {
  Rows rows;
  rows.data = const_cast<void*>(data);
  rows.n = H * T * width, rows.h = T * width, rows.t = width;
  return rows;
}

// What the rule sees of a block of time steps: write strengths, and what queries and keys are divided
// by for attention normalisation.
struct Scalars {
  float *beta, *q_divisor, *k_divisor;

  __device__ Scalars(SharedMemory& shared, int steps)
      : beta(shared.take<float>(steps)),
        q_divisor(shared.take<float>(steps)),
        k_divisor(shared.take<float>(steps)) {}
  static std::size_t bytes(int steps) { return 3 * shared_bytes<float>(steps); }
};

FWM_GPU_CALL void load_scalars(Scalars to, const Causal& a, Head head, Span span) {
  const float* betas = static_cast<const float*>(a.beta.data) + (a.beta.data ? head.offset(a.beta) : 0);
  for_steps(span, [&](int i, Index t) {
    const Index at = span.at(head.index, t);
    const bool writes = !a.mask || a.mask[span.at(head.n, t)];
    const bool full = a.attn_norm == AttnNorm::full;
    const float kappa = full ? fabsf(static_cast<const float*>(a.kappa)[at]) : 1.0f;
    to.q_divisor[i] =
        a.attn_norm == AttnNorm::none ? 1.0f : static_cast<const float*>(a.denominator)[at];
    to.k_divisor[i] = kappa;
    to.beta[i] = a.beta.data && writes ? betas[t * a.beta.t] * kappa : 0.0f;
  });
}

}  // namespace gpu
}  // namespace fwm
