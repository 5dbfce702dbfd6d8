// Forward in time with the transposed S once more; a block holds columns of key features:
//   sum:    S <- S + v_t (x) k_t ;  dq_t = S^T dy_t
//   delta:  dk_t <- dk_t - S^T dv_t ;  S <- S + beta_t r_t (x) k_t ;  dq_t = S^T dy_t
#pragma once

#include "by_value.cuh"

namespace fwm {
namespace gpu {

template <class Shape, bool Delta>
struct QueriesTiles {
  Scalars scalars;
  ValueTiles<Shape, Delta> values;
  FeatureTile q, k;
  float *dq, *dk, *z;

  __device__ QueriesTiles(SharedMemory& shared, const Features& f, int steps, int ld)
      : scalars(shared, steps),
        values(shared, steps),
        q(shared, steps, ld),
        k(shared, steps, ld) {
    dq = shared.take<float>(steps * ld);
    dk = Delta ? shared.take<float>(steps * ld) : nullptr;
    z = shared.take<float>(ld);
    q.take_raw(shared, f, steps);
    k.take_raw(shared, f, steps);
  }
  static std::size_t bytes(const Features& f, int steps, int ld) {
    return Scalars::bytes(steps) + ValueTiles<Shape, Delta>::bytes(steps) + 2 * FeatureTile::bytes(f, steps, ld) +
           (Delta ? 2 : 1) * shared_bytes<float>(steps * ld) + shared_bytes<float>(ld);
  }
};

template <class Shape, bool Delta>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    backward_queries_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER BackwardWorkspace kept, FWM_GPU_PARAMETER Slab slab,
                            const bool all, const int steps) {
  constexpr int E = Shape::kRows;
  SharedMemory shared;
  const Columns<Shape> own_columns(a, all, blockIdx.y);
  const int ld = own_columns.ld();
  const QueriesTiles<Shape, Delta> tile(shared, a.features, steps, ld);
  const Head own(a.H, blockIdx.x);
  const bool norm = a.attn_norm != AttnNorm::none;
  const float* z_0 = static_cast<const float*>(a.normalizer);
  for (int j = threadIdx.x; norm && j < ld; j += blockDim.x) {
    tile.z[j] = z_0 && j < own_columns.width ? z_0[own.index * a.features.K + own_columns.begin + j] : 0.0f;
  }
  ColumnParts<Shape> parts(a, slab, own_columns, a.state, own, kept.places);
  for (int first = 0; first < a.T; first += steps) {
    const Span span(a.T, first, steps, false);
    const Head head(a.H, opaque(blockIdx.x));
    const bool* mask = mask_of(a, head);
    const Columns<Shape> columns(a, all, opaque(blockIdx.y));
    load_scalars(tile.scalars, a, head, span);
    load_divisor_gradients(tile.scalars, a, kept, slab.first, head, span);
    tile.values.load(a, kept, slab, head, span);
    // Queries themselves are wanted only where their map is differentiated.
    if (is_mapped(a.features)) {
      tile.q.load(a.features, a.q, a.dtype, head, span, columns.begin, columns.width);
    }
    tile.k.load(a.features, a.k, a.dtype, head, span, columns.begin, columns.width, mask);
    __syncthreads();
    if (is_mapped(a.features) || norm) {
      map_features(tile.k, a.features, span, tile.scalars.k_divisors(), mask);
      __syncthreads();
    }
    parts.for_each(first == 0, [&](Column<Shape>& S, int from) {
      for (int i = 0; i < span.count; i++) {
        const int at = i * ld + from + Slice<Shape>::column();
        const float beta = Delta ? tile.scalars.beta(i) : 1.0f;
        if (Delta) {
          const float dk = -beta * S.read(Slice<Shape>(tile.values.dv + i * E));
          if (Slice<Shape>::part() == 0) tile.dk[at] = dk;
        }
        S.write(Slice<Shape>(tile.values.written + i * E), beta * tile.k.phi[at]);
        const float dq = S.read(Slice<Shape>(tile.values.dy + i * E));
        if (Slice<Shape>::part() == 0) tile.dq[at] = dq;
      }
    });
    __syncthreads();
    if (norm) {
      ahead_normalizer(tile.z, tile.scalars, span, columns.width, tile.k.phi, ld, tile.dq,
                       tile.dk, ld);
      __syncthreads();
    }
    store_gradients(a, slab.dq, false, tile.q.raw, tile.dq, ld, span,
                    columns.begin, columns.width);
    if (Delta) {
      store_gradients(a, slab.dk, true, tile.k.raw, tile.dk, ld, span,
                    columns.begin, columns.width);
    }
    __syncthreads();
  }
}

template <bool Delta>
void launch_backward_queries(const Causal& a, const BackwardWorkspace& kept, const Slab& slab,
                             cudaStream_t stream) {
  with_shape(slab.count, [&](auto shape) {
    using S = decltype(shape);
    const bool all = sees_all_columns(a);
    const Columns<S> columns(a, all, 0);
    const auto bytes = [&](int steps) {
      return QueriesTiles<S, Delta>::bytes(a.features, steps, columns.ld());
    };
    const int steps = steps_that_fit(a.T, bytes);
    const dim3 grid(unsigned(a.N * a.H), blocks_of_columns<S>(a));
    FWM_GPU_LAUNCH((backward_queries_kernel<S, Delta>), grid, dim3(S::kThreads), bytes(steps), stream, a,
                   kept, slab, all, steps);
  });
}

}  // namespace gpu
}  // namespace fwm
