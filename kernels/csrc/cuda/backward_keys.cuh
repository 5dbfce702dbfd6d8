// Backward in time with the transposed gradient G of S; a block holds columns of key features:
//   sum:    G <- G + dy_t (x) q_t ;  dk_t = G^T v_t
//   delta:  G <- G + dy_t (x) q_t ;  dk_t = G^T (beta_t r_t) ;  G <- G - dv_t (x) k_t
#pragma once

#include "by_value.cuh"

namespace fwm {
namespace gpu {

template <class Shape, bool Delta>
struct KeysTiles {
  Scalars scalars;
  ValueTiles<Shape, Delta> values;
  FeatureTile q, k;
  float *dk, *dz;

  __device__ KeysTiles(SharedMemory& shared, const Features& f, int steps, int ld)
      : scalars(shared, steps),
        values(shared, steps),
        q(shared, steps, ld),
        k(shared, steps, ld) {
    dk = shared.take<float>(steps * ld);
    dz = shared.take<float>(ld);
    q.take_raw(shared, f, steps);
    k.take_raw(shared, f, steps);
  }
  static std::size_t bytes(const Features& f, int steps, int ld) {
    return Scalars::bytes(steps) + ValueTiles<Shape, Delta>::bytes(steps) + 2 * FeatureTile::bytes(f, steps, ld) +
           shared_bytes<float>(steps * ld) + shared_bytes<float>(ld);
  }
};

template <class Shape, bool Delta>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    backward_keys_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER BackwardWorkspace kept, FWM_GPU_PARAMETER Slab slab, const bool all,
                         const int steps) {
  constexpr int E = Shape::kRows;
  SharedMemory shared;
  const Columns<Shape> columns(a, all, blockIdx.y);
  const int ld = columns.ld(), c = Slice<Shape>::column();
  const KeysTiles<Shape, Delta> tile(shared, a.features, steps, ld);
  const Head own(a.H, blockIdx.x);
  const bool first_part = Slice<Shape>::part() == 0, norm = a.attn_norm != AttnNorm::none;
  const bool mapped = is_mapped(a.features) || norm;
  const float* d_final = static_cast<const float*>(a.d_final_normalizer);
  for (int j = threadIdx.x; norm && j < ld; j += blockDim.x) {
    tile.dz[j] = d_final && j < columns.width ? d_final[own.index * a.features.K + columns.begin + j] : 0.0f;
  }
  ColumnParts<Shape> parts(a, slab, columns, a.d_final_state, own, kept.places);
  for (int first = 0; first < a.T; first += steps) {
    const Span span(a.T, first, steps, true);
    const Head head(a.H, opaque(blockIdx.x));
    const bool* mask = mask_of(a, head);
    load_scalars(tile.scalars, a, head, span);
    load_divisor_gradients(tile.scalars, a, kept, slab.first, head, span);
    tile.values.load(a, kept, slab, head, span);
    tile.q.load(a.features, a.q, a.dtype, head, span, columns.begin, columns.width);
    tile.k.load(a.features, a.k, a.dtype, head, span, columns.begin, columns.width, mask);
    __syncthreads();
    if (mapped) {
      map_features(tile.q, a.features, span, tile.scalars.q_divisors());
      map_features(tile.k, a.features, span, tile.scalars.k_divisors(), mask);
      __syncthreads();
    }
    parts.for_each(first == 0, [&](Column<Shape>& G, int from) {
      for (int i = 0; i < span.count; i++) {
        const int at = i * ld + from + c;
        G.write(Slice<Shape>(tile.values.dy + i * E), tile.q.phi[at]);
        const float beta = Delta ? tile.scalars.beta(i) : 1.0f;
        const float dk = beta * G.read(Slice<Shape>(tile.values.written + i * E));
        if (Delta) G.write(Slice<Shape>(tile.values.dv + i * E), -beta * tile.k.phi[at]);
        if (first_part) tile.dk[at] = dk;
      }
    });
    __syncthreads();
    if (norm) {
      reverse_normalizer(tile.dz, tile.scalars, span, slab.first, columns.width,
                         tile.q.phi, tile.k.phi, ld, tile.dk, ld);
      __syncthreads();
    }
    store_gradients(a, slab.dk, true, tile.k.raw, tile.dk, ld, span,
                    columns.begin, columns.width);
    __syncthreads();
  }
  float* d_normalizer = static_cast<float*>(a.d_normalizer);
  for (int j = threadIdx.x; slab.first && d_normalizer && j < columns.width; j += blockDim.x) {
    d_normalizer[own.index * a.features.K + columns.begin + j] = tile.dz[j];
  }
}

template <bool Delta>
void launch_backward_keys(const Causal& a, const BackwardWorkspace& kept, const Slab& slab,
                          cudaStream_t stream) {
  with_shape(slab.count, [&](auto shape) {
    using S = decltype(shape);
    const bool all = sees_all_columns(a);
    const Columns<S> columns(a, all, 0);
    const auto bytes = [&](int steps) {
      return KeysTiles<S, Delta>::bytes(a.features, steps, columns.ld());
    };
    const int steps = steps_that_fit(a.T, bytes);
    const dim3 grid(unsigned(a.N * a.H), blocks_of_columns<S>(a));
    FWM_GPU_LAUNCH((backward_keys_kernel<S, Delta>), grid, dim3(S::kThreads), bytes(steps), stream, a,
                   kept, slab, all, steps);
  });
}

}  // namespace gpu
}  // namespace fwm
