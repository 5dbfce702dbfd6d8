// Forward, chunk by chunk, with some columns of S:
//   delta:  R = T (V - K S) ;  U = diag(beta) R         sum:  U = V
//   Y = Q S + P U ;  S <- S + K^T U
#pragma once

#include "chunk.cuh"

namespace fwm {
namespace gpu {

template <class E>
struct ChunkForwardTiles {
  ChunkFeatures<E> q, k;
  Summed<E> S;
  Matrix<float> v, x;  // C x columns: values, then outputs; products
  Matrix<E> u, reads, inverse;

  static std::size_t bytes(const Causal& a, const Chunks& chunks) {
    const int C = chunks.C, K = int(a.features.K), columns = chunks.columns;
    return 2 * ChunkFeatures<E>::bytes(a.features, C, K) + Summed<E>::bytes(K, columns) +
           2 * Matrix<float>::bytes(C, columns) + Matrix<E>::bytes(C, columns) +
           (a.beta ? 2 : 1) * Matrix<E>::bytes(C, C);
  }
  __device__ ChunkForwardTiles(SharedMemory& shared, const Causal& a, const Chunks& chunks) {
    const int C = chunks.C, K = int(a.features.K), columns = chunks.columns;
    q = ChunkFeatures<E>::take(shared, a.features, C, K);
    k = ChunkFeatures<E>::take(shared, a.features, C, K);
    S = Summed<E>::take(shared, K, columns);
    v = Matrix<float>::take(shared, C, columns);
    x = Matrix<float>::take(shared, C, columns);
    u = Matrix<E>::take(shared, C, columns);
    reads = Matrix<E>::take(shared, C, C);
    inverse = a.beta.data ? Matrix<E>::take(shared, C, C) : reads;
  }
};

template <class E>
__global__ void __launch_bounds__(kChunkThreads, 1)
    chunk_forward_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER Chunks chunks,
                         FWM_GPU_PARAMETER ChunkMatrices<E> matrices) {
  SharedMemory shared;
  const ChunkForwardTiles<E> tile(shared, a, chunks);
  const Head own(a.H, blockIdx.x);
  const int C = chunks.C, K = int(a.features.K), V = int(a.V), begin = blockIdx.y * chunks.columns;
  const int width = min(chunks.columns, V - begin);
  const bool delta = a.beta.data != nullptr;
  const StatePart part{V, 1, Index(own.index) * K * V + begin};
  float* residual = static_cast<float*>(a.residual);
  part.load(tile.S.sum, a.state, K, width);
  tile.S.round(K, width);
  for (int chunk = 0; chunk < chunks.count; chunk++) {
    const Span span = chunks.span(a.T, chunk);
    const Head head(a.H, opaque(blockIdx.x));
    const Index matrix = chunks.matrix(head, chunk);
    load_operand(tile.v, C, a.v, a.dtype, head, span, begin, width, mask_of(a, head));
    load_square(tile.reads, matrices.reads + matrix, C);
    if (delta) load_square(tile.inverse, matrices.inverse + matrix, C);
    load_features(tile.q, tile.k, a, C, head, span, 0, K);
    if (delta) {
      for_tiles<E>(tile.x, C, width, false, [&](Sum<E>& sum, int m, int n) {
        multiply_add<Product::AB>(sum, tile.k.phi, m, tile.S.operand, n, K);
      });
      __syncthreads();
      for_elements(C, width, [&](int i, int c) {
        tile.u.at(i, c) = from_float<E>(tile.v.at(i, c) - tile.x.at(i, c));
      });
      __syncthreads();
      for_tiles<E>(tile.x, C, width, false, [&](Sum<E>& sum, int m, int n) {
        multiply_add<Product::AB>(sum, tile.inverse, m, tile.u, n, C);
      });
      __syncthreads();
    }
    for_elements(C, width, [&](int i, int c) {
      float u = delta ? 0.0f : tile.v.at(i, c);
      if (delta && i < span.count) {
        const Index t = span.time(i);
        const float r = tile.x.at(i, c);
        if (residual) residual[(head.index * a.T + t) * V + begin + c] = r;
        u = write_strength(a, head, t) * r;
      }
      tile.u.at(i, c) = from_float<E>(u);
    });
    __syncthreads();
    for_tiles<E>(tile.v, C, width, false, [&](Sum<E>& sum, int m, int n) {
      multiply_add<Product::AB>(sum, tile.q.phi, m, tile.S.operand, n, K);
      multiply_add<Product::AB>(sum, tile.reads, m, tile.u, n, (m + 1) * kTile);
    });
    tile.S.sync_readers();
    for_tiles<E>(tile.S.sum, K, width, true, [&](Sum<E>& sum, int m, int n) {
      multiply_add<Product::AtB>(sum, tile.k.phi, m, tile.u, n, C);
    });
    __syncthreads();
    store_tile(tile.v.data, tile.v.ld, a.y, a.dtype, head, span, begin, width);
    tile.S.round(K, width);
  }
  if (a.final_state) part.store(a.final_state, tile.S.sum, K, width);
}

}  // namespace gpu
}  // namespace fwm
