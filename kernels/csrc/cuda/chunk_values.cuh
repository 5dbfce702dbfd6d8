// Backward in time, chunk by chunk, with some columns of G, the gradient of S:
//   Z = P^T dY + K G
//   delta:  dV = T^T diag(beta) Z ;  U = Z - L^T dV ;  G <- G + Q^T dY - K^T dV
//   sum:    dV = Z ;                                   G <- G + Q^T dY
#pragma once

#include "chunk.cuh"

namespace fwm {
namespace gpu {

template <class E>
struct ChunkValuesTiles {
  ChunkFeatures<E> q, k;
  Summed<E> G;
  Matrix<float> z;
  Matrix<E> dy, x, reads, inverse, keys;  // x: diag(beta) Z, then -dV

  static std::size_t bytes(const Causal& a, const Chunks& chunks) {
    const int C = chunks.C, K = int(a.features.K), columns = chunks.columns;
    return 2 * ChunkFeatures<E>::bytes(a.features, C, K) + Summed<E>::bytes(K, columns) +
           Matrix<float>::bytes(C, columns) + 2 * Matrix<E>::bytes(C, columns) +
           (a.beta ? 3 : 1) * Matrix<E>::bytes(C, C) + (a.beta ? Matrix<float>::bytes(C, columns) : 0);
  }
  __device__ ChunkValuesTiles(SharedMemory& shared, const Causal& a, const Chunks& chunks) {
    const int C = chunks.C, K = int(a.features.K), columns = chunks.columns;
    const bool delta = a.beta.data != nullptr;
    q = ChunkFeatures<E>::take(shared, a.features, C, K);
    k = ChunkFeatures<E>::take(shared, a.features, C, K);
    G = Summed<E>::take(shared, K, columns);
    z = Matrix<float>::take(shared, C, columns);
    dy = Matrix<E>::take(shared, C, columns);
    x = Matrix<E>::take(shared, C, columns);
    reads = Matrix<E>::take(shared, C, C);
    inverse = delta ? Matrix<E>::take(shared, C, C) : reads;
    keys = delta ? Matrix<E>::take(shared, C, C) : reads;
    dv = delta ? Matrix<float>::take(shared, C, columns) : z;
  }
  Matrix<float> dv;
};

template <class E>
__global__ void __launch_bounds__(kChunkThreads, 1)
    chunk_values_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER Chunks chunks,
                        FWM_GPU_PARAMETER BackwardWorkspace kept,
                        FWM_GPU_PARAMETER ChunkMatrices<E> matrices) {
  SharedMemory shared;
  const ChunkValuesTiles<E> tile(shared, a, chunks);
  const Head own(a.H, blockIdx.x);
  const int C = chunks.C, K = int(a.features.K), V = int(a.V), begin = blockIdx.y * chunks.columns;
  const int width = min(chunks.columns, V - begin);
  const bool delta = a.beta.data != nullptr;
  const StatePart part{V, 1, Index(own.index) * K * V + begin};
  part.load(tile.G.sum, a.d_final_state, K, width);
  tile.G.round(K, width);
  for (int chunk = chunks.count - 1; chunk >= 0; chunk--) {
    const Span span = chunks.span(a.T, chunk);
    const Head head(a.H, opaque(blockIdx.x));
    const Index matrix = chunks.matrix(head, chunk);
    load_operand(tile.dy, C, a.dy, a.dtype, head, span, begin, width);
    load_square(tile.reads, matrices.reads + matrix, C);
    if (delta) {
      load_square(tile.inverse, matrices.inverse + matrix, C);
      load_square(tile.keys, matrices.keys + matrix, C);
    }
    load_features(tile.q, tile.k, a, C, head, span, 0, K);
    for_tiles<E>(tile.z, C, width, false, [&](Sum<E>& sum, int m, int n) {
      multiply_add<Product::AB>(sum, tile.k.phi, m, tile.G.operand, n, K);
      multiply_add<Product::AtB>(sum, tile.reads, m, tile.dy, n, C);
    });
    __syncthreads();
    if (delta) {
      for_elements(C, width, [&](int i, int c) {
        const float beta = i < span.count ? write_strength(a, head, span.time(i)) : 0.0f;
        tile.x.at(i, c) = from_float<E>(beta * tile.z.at(i, c));
      });
      __syncthreads();
      for_tiles<E>(tile.dv, C, width, false, [&](Sum<E>& sum, int m, int n) {
        multiply_add<Product::AtB>(sum, tile.inverse, m, tile.x, n, C);
      });
      __syncthreads();
      for_elements(C, width, [&](int i, int c) { tile.x.at(i, c) = from_float<E>(-tile.dv.at(i, c)); });
      __syncthreads();
      for_tiles<E>(tile.z, C, width, true, [&](Sum<E>& sum, int m, int n) {
        multiply_add<Product::AtB>(sum, tile.keys, m, tile.x, n, C);
      });
    }
    tile.G.sync_readers();
    for_tiles<E>(tile.G.sum, K, width, true, [&](Sum<E>& sum, int m, int n) {
      multiply_add<Product::AtB>(sum, tile.q.phi, m, tile.dy, n, C);
      if (delta) multiply_add<Product::AtB>(sum, tile.k.phi, m, tile.x, n, C);
    });
    __syncthreads();
    if (delta) {
      const Rows u = dense_rows(kept.u, a.H, a.T, a.V);
      store_tile(tile.z.data, tile.z.ld, u, DType::f32, head, span, begin, width);
    } else {
      store_tile(tile.z.data, tile.z.ld, a.dv, a.dtype, head, span, begin, width);
    }
    tile.G.round(K, width);
  }
  if (a.d_state) part.store(a.d_state, tile.G.sum, K, width);
}

}  // namespace gpu
}  // namespace fwm
