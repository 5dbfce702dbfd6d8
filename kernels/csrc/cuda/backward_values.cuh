// Backward in time with G, the gradient of S; a block holds some columns of G:
//   sum:    G <- G + q_t (x) dy_t ;  dv_t = G^T k_t
//   delta:  G <- G + q_t (x) dy_t ;  u_t = G^T k_t ;  G <- G - k_t (x) beta_t u_t
// and from u_t, row by row: dv_t = beta_t u_t, dbeta_t = u_t . r_t, the gradients of the divisors.
#pragma once

#include "features.cuh"
#include "shape.cuh"

namespace fwm {
namespace gpu {

// What the passes of a backward leave for each other, in fp32.
struct BackwardWorkspace {
  float* u = nullptr;              // (N, H, T, V); delta only
  float* d_denominator = nullptr;  // (N, H, T): gradients of z_t . q_t and z_{t-1} . k_t
  float* d_kappa = nullptr;
  float *dq = nullptr, *dk = nullptr;  // (N, H, T, d): sums of several passes
  float* places = nullptr;  // (N, H, .): columns of a state that does not fit the registers
};

template <class Shape>
struct ValuesTiles {
  static constexpr int steps = Shape::kSteps;
  Scalars scalars;
  FeatureTile q, k;
  float *dy, *out;

  __device__ ValuesTiles(SharedMemory& shared, const Features& f)
      : scalars(shared, steps), q(shared, steps, Shape::kRows), k(shared, steps, Shape::kRows) {
    dy = shared.take<float>(steps * Shape::kColumns);
    out = shared.take<float>(steps * Shape::kColumns);
    q.take_raw(shared, f, steps);
    k.take_raw(shared, f, steps);
  }
  static std::size_t bytes(const Features& f) {
    return Scalars::bytes(steps) + 2 * FeatureTile::bytes(f, steps, Shape::kRows) +
           2 * shared_bytes<float>(steps * Shape::kColumns);
  }
};

template <class Shape, bool Delta>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    backward_values_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER BackwardWorkspace kept) {
  constexpr int C = Shape::kColumns, steps = Shape::kSteps;
  SharedMemory shared;
  const ValuesTiles<Shape> tile(shared, a.features);
  const Head own(a.H, blockIdx.x);
  const int K = int(a.features.K), V = int(a.V), begin = blockIdx.y * C;
  const int width = min(C, V - begin), c = Slice<Shape>::column();
  const bool first_part = Slice<Shape>::part() == 0;
  const bool mapped = is_mapped(a.features) || a.attn_norm != AttnNorm::none;
  const Index state = Index(own.index) * K * V;
  const float* d_final = static_cast<const float*>(a.d_final_state);
  Column<Shape> G;
  G.load(d_final ? d_final + state : nullptr, K, V, V, 1, begin);
  for (int first = 0; first < a.T; first += steps) {
    const Span span(a.T, first, steps, true);
    const Head head(a.H, opaque(blockIdx.x));
    const bool* mask = mask_of(a, head);
    load_scalars(tile.scalars, a, head, span);
    tile.q.load(a.features, a.q, a.dtype, head, span, 0, K);
    tile.k.load(a.features, a.k, a.dtype, head, span, 0, K, mask);
    load_tile(tile.dy, C, a.dy, a.dtype, head, span, begin, width);
    __syncthreads();
    if (mapped) {
      map_features(tile.q, a.features, span, tile.scalars.q_divisors());
      map_features(tile.k, a.features, span, tile.scalars.k_divisors(), mask);
      __syncthreads();
    }
    for (int i = 0; i < span.count; i++) {
      G.write(Slice<Shape>(tile.q.phi + i * Shape::kRows), tile.dy[i * C + c]);
      const Slice<Shape> k(tile.k.phi + i * Shape::kRows);
      const float u = G.read(k);
      if (Delta) G.write(k, -tile.scalars.beta(i) * u);
      if (first_part) tile.out[i * C + c] = u;
    }
    __syncthreads();
    if (Delta) {
      store_tile(tile.out, C, dense_rows(kept.u, a.H, a.T, a.V), DType::f32, head, span, begin, width);
    } else {
      store_tile(tile.out, C, a.dv, a.dtype, head, span, begin, width);
    }
  }
  if (a.d_state) G.store(static_cast<float*>(a.d_state) + state, K, V, V, 1, begin);
}

// One warp per time step and head. u . r is taken for the rule's own operands, of which beta_t is
// beta_t kappa_t.
template <bool Delta>
__global__ void __launch_bounds__(128)
    backward_scalars_kernel(FWM_GPU_PARAMETER Causal a, FWM_GPU_PARAMETER BackwardWorkspace kept) {
  const int lane = threadIdx.x % 32, V = int(a.V);
  const Index row = Index(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= a.N * a.H * a.T) return;
  const Head head(a.H, unsigned(row / a.T));
  const Index t = row % a.T;
  const bool* mask = mask_of(a, head);
  const bool writes = !mask || mask[t];
  const bool norm = a.attn_norm != AttnNorm::none, full = a.attn_norm == AttnNorm::full;
  const float kappa = full ? static_cast<const float*>(a.kappa)[row] : -1.0f;
  float dy_y = 0.0f, u_r = 0.0f, retrieved_dv = 0.0f, beta = 0.0f;
  if (Delta && writes) {
    beta = static_cast<const float*>(a.beta.data)[head.offset(a.beta) + t * a.beta.t];
    if (full) beta *= fabsf(kappa);
  }
  with_storage(a.dtype, [&](auto storage) {
    using F = decltype(storage);
    const auto at = [&](const Rows& rows) {
      return static_cast<F*>(rows.data) + head.offset(rows) + t * rows.t;
    };
    for (int c = lane; c < V; c += 32) {
      if (norm) dy_y += to_float(at(a.dy)[c]) * to_float(at(a.y)[c]);
      if (!Delta) continue;
      const float u = kept.u[row * V + c], r = static_cast<const float*>(a.residual)[row * V + c];
      const float dv = beta * u;
      u_r += u * r;
      if (full && writes) retrieved_dv += (to_float(at(a.v)[c]) - r) * dv;
      at(a.dv)[c] = from_float<F>(dv);
    }
  });
  dy_y = warp_sum(dy_y), u_r = warp_sum(u_r), retrieved_dv = warp_sum(retrieved_dv);
  if (lane != 0) return;
  if (Delta) {
    float* d_beta = static_cast<float*>(a.dbeta.data) + head.offset(a.dbeta) + t * a.dbeta.t;
    *d_beta = writes ? u_r * (full ? fabsf(kappa) : 1.0f) : 0.0f;
  }
  if (norm) kept.d_denominator[row] = -dy_y / static_cast<const float*>(a.denominator)[row];
  if (full) kept.d_kappa[row] = kappa > 0.0f ? retrieved_dv / kappa : 0.0f;
}

template <bool Delta>
void launch_backward_values(const Causal& a, const BackwardWorkspace& kept, cudaStream_t stream) {
  with_shape(a.features.K, [&](auto shape) {
    using S = decltype(shape);
    const dim3 grid(unsigned(a.N * a.H), unsigned((a.V + S::kColumns - 1) / S::kColumns));
    FWM_GPU_LAUNCH((backward_values_kernel<S, Delta>), grid, dim3(S::kThreads), ValuesTiles<S>::bytes(a.features), stream,
                   a, kept);
  });
}

template <bool Delta>
void launch_backward_scalars(const Causal& a, const BackwardWorkspace& kept, cudaStream_t stream) {
  if (!Delta && a.attn_norm == AttnNorm::none) return;
  const Index rows = a.N * a.H * a.T;
  if (rows == 0) return;
  FWM_GPU_LAUNCH((backward_scalars_kernel<Delta>), dim3(unsigned((rows + 3) / 4)), dim3(128), 0, stream,
                 a, kept);
}

}  // namespace gpu
}  // namespace fwm
