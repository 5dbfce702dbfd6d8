// The recurrences forward in time, step by step:
//   sum:    S <- S + k_t (x) v_t ;  y_t = S^T q_t
//   delta:  r_t = v_t - S^T k_t ;  S <- S + k_t (x) beta_t r_t ;  y_t = S^T q_t
// A block holds some columns of S; columns are independent.
#pragma once

#include "features.cuh"
#include "shape.cuh"

namespace fwm {
namespace gpu {

template <class Shape, bool Delta>
struct ForwardTiles {
  static constexpr int steps = Shape::kSteps;
  Scalars scalars;
  FeatureTile q, k;
  float *v, *y, *r;

  __device__ ForwardTiles(SharedMemory& shared, const Features& f)
      : scalars(shared, steps), q(shared, steps, Shape::kRows), k(shared, steps, Shape::kRows) {
    v = shared.take<float>(steps * Shape::kColumns);
    y = shared.take<float>(steps * Shape::kColumns);
    r = Delta ? shared.take<float>(steps * Shape::kColumns) : nullptr;
    q.take_raw(shared, f, steps);
    k.take_raw(shared, f, steps);
  }
  static std::size_t bytes(const Features& f) {
    return Scalars::bytes(steps) + 2 * FeatureTile::bytes(f, steps, Shape::kRows) +
           (Delta ? 3 : 2) * shared_bytes<float>(steps * Shape::kColumns);
  }
};

template <class Shape, bool Delta>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks) forward_kernel(FWM_GPU_PARAMETER Causal a) {
  constexpr int C = Shape::kColumns, steps = Shape::kSteps;
  SharedMemory shared;
  const ForwardTiles<Shape, Delta> tile(shared, a.features);
  const Head own(a.H, blockIdx.x);
  const int K = int(a.features.K), V = int(a.V), begin = blockIdx.y * C;
  const int width = min(C, V - begin), c = Slice<Shape>::column();
  const bool first_part = Slice<Shape>::part() == 0;
  const bool mapped = is_mapped(a.features) || a.attn_norm != AttnNorm::none;
  const Rows residuals = dense_rows(a.residual, a.H, a.T, a.V);
  const Index state = Index(own.index) * K * V;
  Column<Shape> S;
  S.load(a.state ? static_cast<const float*>(a.state) + state : nullptr, K, V, V, 1, begin);
  for (int first = 0; first < a.T; first += steps) {
    const Span span(a.T, first, steps, false);
    const Head head(a.H, opaque(blockIdx.x));
    const bool* mask = mask_of(a, head);
    load_scalars(tile.scalars, a, head, span);
    tile.q.load(a.features, a.q, a.dtype, head, span, 0, K);
    tile.k.load(a.features, a.k, a.dtype, head, span, 0, K, mask);
    load_tile(tile.v, C, a.v, a.dtype, head, span, begin, width, mask);
    __syncthreads();
    if (mapped) {
      map_features(tile.q, a.features, span, tile.scalars.q_divisors());
      map_features(tile.k, a.features, span, tile.scalars.k_divisors(), mask);
      __syncthreads();
    }
    for (int i = 0; i < span.count; i++) {
      const Slice<Shape> k(tile.k.phi + i * Shape::kRows);
      float x = tile.v[i * C + c];
      if constexpr (Delta) {
        x -= S.read(k);
        if (first_part) tile.r[i * C + c] = x;
        x *= tile.scalars.beta(i);
      }
      S.write(k, x);
      const float y = S.read(Slice<Shape>(tile.q.phi + i * Shape::kRows));
      if (first_part) tile.y[i * C + c] = y;
    }
    __syncthreads();
    store_tile(tile.y, C, a.y, a.dtype, head, span, begin, width);
    if (Delta && a.residual) {
      store_tile(tile.r, C, residuals, DType::f32, head, span, begin, width);
    }
  }
  if (a.final_state) {
    S.store(static_cast<float*>(a.final_state) + state, K, V, V, 1, begin);
  }
}

template <bool Delta>
void launch_forward(const Causal& a, cudaStream_t stream) {
  with_shape(a.features.K, [&](auto shape) {
    using S = decltype(shape);
    const dim3 grid(unsigned(a.N * a.H), unsigned((a.V + S::kColumns - 1) / S::kColumns));
    const std::size_t bytes = ForwardTiles<S, Delta>::bytes(a.features);
    FWM_GPU_LAUNCH((forward_kernel<S, Delta>), grid, dim3(S::kThreads), bytes, stream, a);
  });
}

}  // namespace gpu
}  // namespace fwm
