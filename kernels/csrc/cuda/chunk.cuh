// What the chunkwise kernels share. A chunk of C time steps is a few matrix products (docs/cuda.md); only
// its C x C matrices and the state at its start couple it to the others.
#pragma once

#include "backward_values.cuh"
#include "matrix.cuh"

namespace fwm {
namespace gpu {

constexpr int kChunkThreads = 256;

// C x C matrices of all heads and chunks in global memory, of the operands' type. With
// L = strict_tril(K K^T) and B = diag(beta), whose rows t are times and columns s:
template <class E>
struct ChunkMatrices {
  E* reads = nullptr;    // P = tril(Q K^T)
  E* inverse = nullptr;  // T = (I + L B)^-1; delta
  E* keys = nullptr;     // L; delta, backward
  // Backward, with rows of W: v_t (sum) or beta_t r_t (delta).
  E* writes = nullptr;   // triu(W dY^T)
  E* erased = nullptr;   // -strict_triu(W dV^T); delta
};

// How a launch cuts up time, and the columns and rows of the state.
struct Chunks {
  int C = 0, count = 0;
  int columns = 0, rows = 0;

  __device__ Span span(Index T, int chunk) const { return Span(T, chunk * C, C, false); }
  __device__ Index matrix(const Head& head, int chunk) const {
    return (Index(head.index) * count + chunk) * C * C;
  }
};

// tile = columns [begin, begin + width) of the rows times factor(i, t); zeros at masked steps and after
// the last step of the chunk.
template <class To, class Factor>
__device__ __forceinline__ void load_operand(const Matrix<To>& tile, int C, const Rows& rows, DType dtype,
                                             const Head& head, const Span& span, int begin, int width,
                                             const bool* mask, Factor factor) {
  with_storage(dtype, [&](auto storage) {
    using F = decltype(storage);
    const F* from = static_cast<const F*>(rows.data) + head.offset(rows) + begin;
    for_elements(C, width, [&](int i, int c) {
      float x = 0.0f;
      if (i < span.count) {
        const Index t = span.time(i);
        if (!mask || mask[t]) x = to_float(from[t * rows.t + c]) * factor(i, t);
      }
      tile.at(i, c) = from_float<To>(x);
    });
  });
}
template <class To>
__device__ __forceinline__ void load_operand(const Matrix<To>& tile, int C, const Rows& rows, DType dtype,
                                             const Head& head, const Span& span, int begin, int width,
                                             const bool* mask = nullptr) {
  load_operand(tile, C, rows, dtype, head, span, begin, width, mask,
               [](int, Index) { return 1.0f; });
}

template <class E>
__device__ __forceinline__ void load_square(const Matrix<E>& to, const E* from, int C) {
  for_elements(C, C, [&](int i, int j) { to.at(i, j) = from[i * C + j]; });
}
template <class E>
__device__ __forceinline__ void store_square(E* to, const Matrix<E>& from, int C) {
  for_elements(C, C, [&](int i, int j) { to[i * C + j] = from.at(i, j); });
}

// beta_t kappa_t of the rule's own operands.
__device__ __forceinline__ float write_strength(const Causal& a, const Head& head, Index t) {
  const bool* mask = mask_of(a, head);
  if (mask && !mask[t]) return 0.0f;
  const float beta = static_cast<const float*>(a.beta.data)[head.offset(a.beta) + t * a.beta.t];
  if (a.attn_norm != AttnNorm::full) return beta;
  return beta * fabsf(scalars_of(a.kappa, a, head)[t]);
}

// What attention normalisation divides row t of queries or keys by.
__device__ __forceinline__ float divisor_of(const Causal& a, bool keys, const Head& head,
                                            Index t) {
  if (keys ? a.attn_norm != AttnNorm::full : a.attn_norm == AttnNorm::none) return 1.0f;
  return fabsf(scalars_of(keys ? a.kappa : a.denominator, a, head)[t]);
}

// Queries or keys of a chunk as the rule sees them, as an operand; raw rows beside it where they are
// mapped.
template <class E>
struct ChunkFeatures {
  Matrix<E> phi;
  float* raw;

  static std::size_t bytes(const Features& f, int C, int columns) {
    return Matrix<E>::bytes(C, columns) + (is_mapped(f) ? shared_bytes<float>(C * int(f.d)) : 0);
  }
  __device__ static ChunkFeatures take(SharedMemory& shared, const Features& f, int C, int columns) {
    ChunkFeatures tile;
    tile.phi = Matrix<E>::take(shared, C, columns);
    tile.raw = is_mapped(f) ? shared.take<float>(C * int(f.d)) : nullptr;
    return tile;
  }

  // Columns [begin, begin + width), all of them where rows are mapped: then only raw rows are loaded.
  __device__ void load(const Causal& a, bool keys, int C, const Head& head, const Span& span, int begin,
                       int width) const {
    const Rows& rows = keys ? a.k : a.q;
    const bool* mask = keys ? mask_of(a, head) : nullptr;
    if (is_mapped(a.features)) {
      const Matrix<float> to{raw, int(a.features.d)};
      load_operand(to, C, rows, a.dtype, head, span, 0, int(a.features.d), mask);
    } else {
      load_operand(phi, C, rows, a.dtype, head, span, begin, width, mask, [&](int, Index t) {
        return 1.0f / divisor_of(a, keys, head, t);
      });
    }
  }

  // After a barrier, where rows are mapped: one warp per row.
  __device__ void map(const Causal& a, bool keys, int C, const Head& head, const Span& span) const {
    const Features& f = a.features;
    const bool* mask = keys ? mask_of(a, head) : nullptr;
    for (int i = threadIdx.x / 32; i < C; i += blockDim.x / 32) {
      const float* x = raw + i * int(f.d);
      float factor = 0.0f, sum = 0.0f;
      if (f.sum_norm) {
        for_features(f, x, [&](int, float phi_j) { sum += phi_j; });
        sum = warp_sum(sum) + float(kSumNormEps);
      }
      if (i < span.count) {
        const Index t = span.time(i);
        if (!mask || mask[t]) factor = 1.0f / divisor_of(a, keys, head, t);
      }
      if (f.sum_norm) factor /= sum;
      E* row = phi.row(i);
      for_features(f, x, [&](int j, float phi_j) {
        row[j] = from_float<E>(factor == 0.0f ? 0.0f : phi_j * factor);
      });
    }
  }
};

// Both of them, with the barriers that they need.
template <class E>
__device__ __forceinline__ void load_features(const ChunkFeatures<E>& q, const ChunkFeatures<E>& k,
                                              const Causal& a, int C, const Head& head, const Span& span,
                                              int begin, int width) {
  q.load(a, false, C, head, span, begin, width);
  k.load(a, true, C, head, span, begin, width);
  __syncthreads();
  if (!is_mapped(a.features)) return;
  q.map(a, false, C, head, span);
  k.map(a, true, C, head, span);
  __syncthreads();
}

// A part of a state (K, V) in global memory: rows [first_row, ...) and columns from `first_column`.
struct StatePart {
  Index row_stride, column_stride, offset;

  __device__ void load(const Matrix<float>& to, const void* state, int rows, int columns) const {
    const float* from = static_cast<const float*>(state) + offset;
    for_elements(rows, columns, [&](int i, int j) {
      to.at(i, j) = state ? from[i * row_stride + j * column_stride] : 0.0f;
    });
  }
  __device__ void store(void* state, const Matrix<float>& from, int rows, int columns) const {
    float* to = static_cast<float*>(state) + offset;
    for_elements(rows, columns, [&](int i, int j) {
      to[i * row_stride + j * column_stride] = from.at(i, j);
    });
  }
};

}  // namespace gpu
}  // namespace fwm
