// The gradients of keys and queries, chunk by chunk, with a part of the transposed state: values along the
// rows, key features along the columns.
//   keys, backward in time:     dK = W G + triu(W dY^T) Q - striu(W dV^T) K ;  G <- G + dY^T Q - dV^T K
//   queries, forward in time:   dQ = dY S + triu(W dY^T)^T K ;  dK <- dK - dV S - striu(W dV^T)^T K ;
//                               S <- S + W^T K
// with W = V for the sum rule, which has no terms in dV, and W = diag(beta) R for the delta rule.
#pragma once

#include "by_value.cuh"
#include "chunk_prepare.cuh"

namespace fwm {
namespace gpu {

template <class E>
struct ChunkByValueTiles {
  ChunkFeatures<E> q, k;
  ChunkValues<E> values;
  Summed<E> S;
  Matrix<float> dq, dk;
  Matrix<E> writes, erased;
  Scalars scalars;
  float* z;

  static std::size_t bytes(const Causal& a, bool keys, const Chunks& chunks) {
    const int C = chunks.C, columns = chunks.columns, rows = chunks.rows;
    const bool delta = bool(a.beta);
    return 2 * ChunkFeatures<E>::bytes(a.features, C, columns) + ChunkValues<E>::bytes(delta, C, rows) +
           Summed<E>::bytes(rows, columns) +
           (delta && !keys ? 2 : 1) * Matrix<float>::bytes(C, columns) +
           (delta ? 2 : 1) * Matrix<E>::bytes(C, C) + Scalars::bytes(C) +
           shared_bytes<float>(columns);
  }
  __device__ ChunkByValueTiles(SharedMemory& shared, const Causal& a, bool keys, const Chunks& chunks)
      : scalars(shared, chunks.C) {
    const int C = chunks.C, columns = chunks.columns, rows = chunks.rows;
    const bool delta = a.beta.data != nullptr;
    z = shared.take<float>(columns);
    q = ChunkFeatures<E>::take(shared, a.features, C, columns);
    k = ChunkFeatures<E>::take(shared, a.features, C, columns);
    values = ChunkValues<E>::take(shared, delta, C, rows);
    S = Summed<E>::take(shared, rows, columns);
    dq = Matrix<float>::take(shared, C, columns);
    dk = delta && !keys ? Matrix<float>::take(shared, C, columns) : dq;
    writes = Matrix<E>::take(shared, C, C);
    erased = delta ? Matrix<E>::take(shared, C, C) : writes;
  }

  __device__ void load(const Causal& a, const BackwardWorkspace& kept, const Slab& slab,
                       const ChunkMatrices<E>& matrices, Index matrix, int C, const Head& head,
                       const Span& span, int begin, int width) const {
    load_scalars(scalars, a, head, span);
    load_divisor_gradients(scalars, a, kept, slab.first, head, span);
    values.load(a, kept, C, head, span, slab.begin, slab.count);
    load_square(writes, matrices.writes + matrix, C);
    if (a.beta.data) load_square(erased, matrices.erased + matrix, C);
    load_features(q, k, a, C, head, span, begin, width);
  }
};

template <class E>
__global__ void __launch_bounds__(kChunkThreads, 1)
    chunk_keys_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER Chunks chunks,
                      FWM_GPU_PARAMETER BackwardWorkspace kept, FWM_GPU_PARAMETER Slab slab,
                      FWM_GPU_PARAMETER ChunkMatrices<E> matrices) {
  SharedMemory shared;
  const ChunkByValueTiles<E> tile(shared, a, true, chunks);
  const Head own(a.H, blockIdx.x);
  const int C = chunks.C, K = int(a.features.K), begin = blockIdx.y * chunks.columns;
  const int width = min(chunks.columns, K - begin), rows = slab.count;
  const bool delta = a.beta.data != nullptr, norm = a.attn_norm != AttnNorm::none;
  const StatePart part{1, a.V, (Index(own.index) * K + begin) * a.V + slab.begin};
  const Index z = Index(own.index) * K + begin;
  const float* d_final = static_cast<const float*>(a.d_final_normalizer);
  for (int j = threadIdx.x; norm && j < width; j += blockDim.x) tile.z[j] = d_final ? d_final[z + j] : 0.0f;
  part.load(tile.S.sum, a.d_final_state, rows, width);
  tile.S.round(rows, width);
  for (int chunk = chunks.count - 1; chunk >= 0; chunk--) {
    const Span span = chunks.span(a.T, chunk);
    const Head head(a.H, opaque(blockIdx.x));
    tile.load(a, kept, slab, matrices, chunks.matrix(head, chunk), C, head, span, begin, width);
    for_tiles<E>(tile.dk, C, width, false, [&](Sum<E>& sum, int m, int n) {
      multiply_add<Product::AB>(sum, tile.values.written, m, tile.S.operand, n, rows);
      if (!slab.first) return;
      multiply_add<Product::AB>(sum, tile.writes, m, tile.q.phi, n, C);
      if (delta) multiply_add<Product::AB>(sum, tile.erased, m, tile.k.phi, n, C);
    });
    tile.S.sync_readers();
    for_tiles<E>(tile.S.sum, rows, width, true, [&](Sum<E>& sum, int m, int n) {
      multiply_add<Product::AtB>(sum, tile.values.dy, m, tile.q.phi, n, C);
      if (delta) multiply_add<Product::AtB>(sum, tile.values.erased, m, tile.k.phi, n, C);
    });
    __syncthreads();
    tile.S.round(rows, width);
    if (norm) {
      reverse_normalizer(tile.z, tile.scalars, span, slab.first, width,
                         tile.q.phi.data, tile.k.phi.data, tile.k.phi.ld, tile.dk.data, tile.dk.ld);
      __syncthreads();
    }
    store_gradients(a, slab.dk, true, tile.k.raw, tile.dk.data, tile.dk.ld, span,
                    begin, width);
    __syncthreads();
  }
  float* d_normalizer = static_cast<float*>(a.d_normalizer);
  for (int j = threadIdx.x; slab.first && d_normalizer && j < width; j += blockDim.x) {
    d_normalizer[z + j] = tile.z[j];
  }
}

template <class E>
__global__ void __launch_bounds__(kChunkThreads, 1)
    chunk_queries_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER Chunks chunks,
                         FWM_GPU_PARAMETER BackwardWorkspace kept, FWM_GPU_PARAMETER Slab slab,
                         FWM_GPU_PARAMETER ChunkMatrices<E> matrices) {
  SharedMemory shared;
  const ChunkByValueTiles<E> tile(shared, a, false, chunks);
  const Head own(a.H, blockIdx.x);
  const int C = chunks.C, K = int(a.features.K), begin = blockIdx.y * chunks.columns;
  const int width = min(chunks.columns, K - begin), rows = slab.count;
  const bool delta = a.beta.data != nullptr, norm = a.attn_norm != AttnNorm::none;
  const StatePart part{1, a.V, (Index(own.index) * K + begin) * a.V + slab.begin};
  const float* z_0 = static_cast<const float*>(a.normalizer);
  for (int j = threadIdx.x; norm && j < width; j += blockDim.x) {
    tile.z[j] = z_0 ? z_0[Index(own.index) * K + begin + j] : 0.0f;
  }
  part.load(tile.S.sum, a.state, rows, width);
  tile.S.round(rows, width);
  for (int chunk = 0; chunk < chunks.count; chunk++) {
    const Span span = chunks.span(a.T, chunk);
    const Head head(a.H, opaque(blockIdx.x));
    tile.load(a, kept, slab, matrices, chunks.matrix(head, chunk), C, head, span, begin, width);
    for_tiles<E>(tile.dq, C, width, false, [&](Sum<E>& sum, int m, int n) {
      multiply_add<Product::AB>(sum, tile.values.dy, m, tile.S.operand, n, rows);
      if (slab.first) multiply_add<Product::AtB>(sum, tile.writes, m, tile.k.phi, n, C);
    });
    if (delta) {
      for_tiles<E>(tile.dk, C, width, false, [&](Sum<E>& sum, int m, int n) {
        multiply_add<Product::AB>(sum, tile.values.erased, m, tile.S.operand, n, rows);
        if (slab.first) multiply_add<Product::AtB>(sum, tile.erased, m, tile.k.phi, n, C);
      });
    }
    tile.S.sync_readers();
    for_tiles<E>(tile.S.sum, rows, width, true, [&](Sum<E>& sum, int m, int n) {
      multiply_add<Product::AtB>(sum, tile.values.written, m, tile.k.phi, n, C);
    });
    __syncthreads();
    tile.S.round(rows, width);
    if (norm) {
      ahead_normalizer(tile.z, tile.scalars, span, width, tile.k.phi.data,
                       tile.k.phi.ld, tile.dq.data, delta ? tile.dk.data : nullptr, tile.dq.ld);
      __syncthreads();
    }
    store_gradients(a, slab.dq, false, tile.q.raw, tile.dq.data, tile.dq.ld, span,
                    begin, width);
    if (delta) {
      store_gradients(a, slab.dk, true, tile.k.raw, tile.dk.data, tile.dk.ld, span,
                    begin, width);
    }
    __syncthreads();
  }
}

}  // namespace gpu
}  // namespace fwm
