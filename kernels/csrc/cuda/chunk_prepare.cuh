// The C x C matrices of every chunk: all chunks at once.
#pragma once

#include "chunk.cuh"
#include "triangle.cuh"

namespace fwm {
namespace gpu {

template <class E>
struct PrepareTiles {
  ChunkFeatures<E> q, k;
  Matrix<float> reads, keys, inverse;
  float* beta;

  static std::size_t bytes(const Causal& a, int C) {
    const int K = int(a.features.K);
    return 2 * ChunkFeatures<E>::bytes(a.features, C, K) + 3 * Matrix<float>::bytes(C, C) +
           shared_bytes<float>(C);
  }
  __device__ PrepareTiles(SharedMemory& shared, const Causal& a, int C)
      : q(ChunkFeatures<E>::take(shared, a.features, C, int(a.features.K))),
        k(ChunkFeatures<E>::take(shared, a.features, C, int(a.features.K))),
        reads(Matrix<float>::take(shared, C, C)),
        keys(Matrix<float>::take(shared, C, C)),
        inverse(Matrix<float>::take(shared, C, C)),
        beta(shared.take<float>(C)) {}
};

// P, and for delta T and L: see ChunkMatrices.
template <class E>
__global__ void __launch_bounds__(kChunkThreads, 2)
    chunk_prepare_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER Chunks chunks,
                         FWM_GPU_PARAMETER ChunkMatrices<E> out) {
  SharedMemory shared;
  const int C = chunks.C, K = int(a.features.K);
  const PrepareTiles<E> tile(shared, a, C);
  const Head head(a.H, blockIdx.x);
  const Span span = chunks.span(a.T, blockIdx.y);
  const Index matrix = chunks.matrix(head, blockIdx.y);
  const bool delta = out.inverse != nullptr;
  for (int i = threadIdx.x; delta && i < C; i += blockDim.x) {
    tile.beta[i] = i < span.count ? write_strength(a, head, span.time(i)) : 0.0f;
  }
  load_features(tile.q, tile.k, a, C, head, span, 0, K);
  for_tiles<E>(tile.reads, C, C, false, [&](Sum<E>& sum, int m, int n) {
    if (m >= n) multiply_add<Product::ABt>(sum, tile.q.phi, m, tile.k.phi, n, K);
  });
  if (delta) {
    for_tiles<E>(tile.keys, C, C, false, [&](Sum<E>& sum, int m, int n) {
      if (m >= n) multiply_add<Product::ABt>(sum, tile.k.phi, m, tile.k.phi, n, K);
    });
  }
  __syncthreads();
  for_elements(C, C, [&](int i, int j) {
    out.reads[matrix + i * C + j] = from_float<E>(j <= i ? tile.reads.at(i, j) : 0.0f);
    if (!delta) return;
    const float key = j < i ? tile.keys.at(i, j) : 0.0f;
    if (out.keys) out.keys[matrix + i * C + j] = from_float<E>(key);
    tile.keys.at(i, j) = -key * tile.beta[j];
  });
  if (!delta) return;
  __syncthreads();
  invert_triangle(tile.inverse, tile.keys, tile.reads, C);
  for_elements(C, C, [&](int i, int j) {
    out.inverse[matrix + i * C + j] = from_float<E>(tile.inverse.at(i, j));
  });
}

// Rows of values of a chunk as operands: dy_t, and v_t (sum) or beta_t r_t and -dv_t (delta).
template <class E>
struct ChunkValues {
  Matrix<E> dy, written, erased;

  static std::size_t bytes(bool delta, int C, int rows) {
    return (delta ? 3 : 2) * Matrix<E>::bytes(C, rows);
  }
  __device__ static ChunkValues take(SharedMemory& shared, bool delta, int C, int rows) {
    ChunkValues tile;
    tile.dy = Matrix<E>::take(shared, C, rows);
    tile.written = Matrix<E>::take(shared, C, rows);
    tile.erased = delta ? Matrix<E>::take(shared, C, rows) : tile.dy;
    return tile;
  }
  __device__ void load(const Causal& a, const BackwardWorkspace& kept, int C, const Head& head,
                       const Span& span, int begin, int rows) const {
    load_operand(dy, C, a.dy, a.dtype, head, span, begin, rows);
    if (!kept.u) {
      load_operand(written, C, a.v, a.dtype, head, span, begin, rows, mask_of(a, head));
      return;
    }
    const auto strength = [&](int, Index t) { return write_strength(a, head, t); };
    load_operand(written, C, dense_rows(a.residual, a.H, a.T, a.V), DType::f32, head, span, begin, rows,
                 nullptr, strength);
    load_operand(erased, C, dense_rows(kept.u, a.H, a.T, a.V), DType::f32, head, span, begin, rows,
                 nullptr, [&](int i, Index t) { return -strength(i, t); });
  }
};

template <class E>
struct PrepareValuesTiles {
  ChunkValues<E> values;
  Matrix<float> writes, erased;

  static std::size_t bytes(const Causal& a, bool delta, int C, int rows) {
    return ChunkValues<E>::bytes(delta, C, rows) + 2 * Matrix<float>::bytes(C, C);
  }
  __device__ PrepareValuesTiles(SharedMemory& shared, bool delta, int C, int rows)
      : values(ChunkValues<E>::take(shared, delta, C, rows)),
        writes(Matrix<float>::take(shared, C, C)),
        erased(Matrix<float>::take(shared, C, C)) {}
};

// triu(W dY^T) and -strict_triu(W dV^T); values come in parts of chunks.rows.
template <class E>
__global__ void __launch_bounds__(kChunkThreads, 2)
    chunk_prepare_values_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER Chunks chunks,
                                FWM_GPU_PARAMETER BackwardWorkspace kept,
                                FWM_GPU_PARAMETER ChunkMatrices<E> out) {
  SharedMemory shared;
  const int C = chunks.C;
  const bool delta = kept.u != nullptr;
  const PrepareValuesTiles<E> tile(shared, delta, C, chunks.rows);
  const Head head(a.H, blockIdx.x);
  const Span span = chunks.span(a.T, blockIdx.y);
  const Index matrix = chunks.matrix(head, blockIdx.y);
  for (int begin = 0; begin < a.V; begin += chunks.rows) {
    const int rows = min(chunks.rows, int(a.V) - begin);
    tile.values.load(a, kept, C, head, span, begin, rows);
    __syncthreads();
    for_tiles<E>(tile.writes, C, C, begin > 0, [&](Sum<E>& sum, int m, int n) {
      if (m <= n) multiply_add<Product::ABt>(sum, tile.values.written, m, tile.values.dy, n, rows);
    });
    if (delta) {
      for_tiles<E>(tile.erased, C, C, begin > 0, [&](Sum<E>& sum, int m, int n) {
        if (m <= n) multiply_add<Product::ABt>(sum, tile.values.written, m, tile.values.erased, n, rows);
      });
    }
    __syncthreads();
  }
  for_elements(C, C, [&](int i, int j) {
    out.writes[matrix + i * C + j] = from_float<E>(j >= i ? tile.writes.at(i, j) : 0.0f);
    if (delta) out.erased[matrix + i * C + j] = from_float<E>(j > i ? tile.erased.at(i, j) : 0.0f);
  });
}

}  // namespace gpu
}  // namespace fwm
