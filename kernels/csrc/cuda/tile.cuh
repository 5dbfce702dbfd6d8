// Blocks of time steps in shared memory: from rows of any dtype and strides, and back.
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

// `count` time steps after `before` ones; reversed, both are counted from the end.
struct Span {
  int first, direction, count;

  __device__ Span(Index T, int before, int steps, bool reversed)
      : first(reversed ? int(T) - 1 - before : before),
        direction(reversed ? -1 : 1),
        count(min(int(T) - before, steps)) {}
  __device__ Index time(int i) const { return first + direction * i; }
};

// Where the numbers of a sequence begin in (., T), if they are there.
template <class F>
__device__ __forceinline__ const F* of_sequence(const F* numbers, unsigned row, Index T) {
  return numbers ? numbers + Index(row) * T : nullptr;
}
__device__ __forceinline__ const bool* mask_of(const Causal& a, const Head& head) {
  return of_sequence(a.mask, head.n, a.T);
}
__device__ __forceinline__ const float* scalars_of(const void* numbers, const Causal& a,
                                                   const Head& head) {
  return of_sequence(static_cast<const float*>(numbers), head.index, a.T);
}

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
  // Not unrolled: addresses of several rows would cost the registers that hold the state.
#pragma unroll 1
  for (int i = threadIdx.x / lanes; i < rows; i += blockDim.x / lanes) {
#pragma unroll 1
    for (int c = threadIdx.x % lanes; c < columns; c += lanes) run(i, c);
  }
}

// One number per time step, shared out over the block's threads.
template <class Run>
__device__ __forceinline__ void for_steps(const Span& span, Run run) {
  for (int i = threadIdx.x; i < span.count; i += blockDim.x) run(i, span.time(i));
}

// tile[i][c] = columns [begin, begin + width) of the rows; zeros up to `ld` and at masked steps (`mask`
// is the sequence's own).
__device__ __forceinline__ void load_tile(float* tile, int ld, Rows rows, DType dtype, Head head, Span span,
                            int begin, int width, const bool* mask = nullptr) {
  with_storage(dtype, [&](auto storage) {
    using F = decltype(storage);
    const F* from = static_cast<const F*>(rows.data) + head.offset(rows) + begin;
    for_elements(span.count, ld, [&](int i, int c) {
      const Index t = span.time(i);
      const bool there = c < width && (!mask || mask[t]);
      tile[i * ld + c] = there ? to_float(from[t * rows.t + c]) : 0.0f;
    });
  });
}
__device__ __forceinline__ void store_tile(const float* tile, int ld, Rows rows, DType dtype, Head head, Span span,
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

// Numbers of a block of time steps that all threads want: the rule's write strengths, what attention
// normalisation divides queries and keys by and, backward, the gradients of these divisors.
class Scalars {
 public:
  __device__ Scalars(SharedMemory& shared, int steps)
      : data_(shared.take<float>(kKinds * steps)), steps_(steps) {}
  static std::size_t bytes(int steps) { return shared_bytes<float>(kKinds * steps); }

  __device__ __forceinline__ float& beta(int i) const { return data_[i]; }
  __device__ __forceinline__ float* q_divisors() const { return data_ + steps_; }
  __device__ __forceinline__ float* k_divisors() const { return data_ + 2 * steps_; }
  __device__ __forceinline__ float& d_q_divisor(int i) const { return data_[3 * steps_ + i]; }
  __device__ __forceinline__ float& d_k_divisor(int i) const { return data_[4 * steps_ + i]; }

 private:
  static constexpr int kKinds = 5;
  float* data_;
  int steps_;
};

__device__ __forceinline__ void load_scalars(Scalars to, const Causal& a, Head head, Span span) {
  const float* betas = static_cast<const float*>(a.beta.data) + (a.beta.data ? head.offset(a.beta) : 0);
  const bool* mask = mask_of(a, head);
  for_steps(span, [&](int i, Index t) {
    const bool norm = a.attn_norm != AttnNorm::none, full = a.attn_norm == AttnNorm::full;
    const float kappa = full ? fabsf(scalars_of(a.kappa, a, head)[t]) : 1.0f;
    to.q_divisors()[i] = norm ? scalars_of(a.denominator, a, head)[t] : 1.0f;
    to.k_divisors()[i] = kappa;
    to.beta(i) = a.beta.data && (!mask || mask[t]) ? betas[t * a.beta.t] * kappa : 0.0f;
  });
}

}  // namespace gpu
}  // namespace fwm
