// The self-referential weight matrix, forward and backward in time: see ../cpu/self_referential.h.
#pragma once

#include "sequential.cuh"

namespace fwm {
namespace gpu {

struct SelfReferentialPlan : Sequential {
  static std::size_t vectors(Index d, bool backward) {
    const int n = int(d), row = 3 * n + 4;
    return backward ? shared_bytes<float>(4) + 5 * shared_bytes<float>(n) + 3 * shared_bytes<float>(row)
                    : shared_bytes<float>(n) + shared_bytes<float>(row);
  }
  SelfReferentialPlan(const SelfReferential& a, bool backward, std::size_t limit)
      : Sequential((backward ? 2 : 1) * (3 * a.d + 4), vectors(a.d, backward), backward ? 2 : 1,
                   a.d * (3 * a.d + 4), limit) {}
};

// Of the four parts of a row, y | q | k | beta, the one that column j belongs to.
__device__ __forceinline__ int part_of(int j, int d) { return j < d ? 0 : j < 2 * d ? 1 : j < 3 * d ? 2 : 3; }

// Kept for the backward pass: q | k | beta, which is zero where nothing is written, | W^T (q - k).
__global__ void __launch_bounds__(kSequentialThreads, 4)
    self_referential_forward_kernel(FWM_GPU_PARAMETER SelfReferential p, int matrices) {
  SharedMemory shared;
  const int d = int(p.d), M = 3 * d + 4, T = int(p.T), keeps = 5 * d + 8;
  const Index head = blockIdx.x, n = head / p.H;
  // y | q' | k' | beta', then with activations
  float *const x = shared.take<float>(d), *const a = shared.take<float>(M);
  float *const q = a + d, *const k = a + 2 * d, *const beta = a + 3 * d;
  const bool* mask = p.mask ? p.mask + n * p.T : nullptr;
  float* final_weights = static_cast<float*>(p.final_weights) + head * d * M;
  const Working weights(shared, matrices > 0, static_cast<const float*>(p.weights) + head * d * M,
                        final_weights, d * M);
  float* const W = weights.data();
  for (int t = 0; t < T; t++) {
    const Index at = head * p.T + t;
    const bool on = !mask || mask[t];
    by_thread(d, [&](int i) { x[i] = on ? static_cast<const float*>(p.x)[at * d + i] : 0.0f; });
    __syncthreads();
    by_thread(M, [&](int j) {
      a[j] = column_sum(W, d, M, j, x);
      if (j < d) static_cast<float*>(p.y)[at * d + j] = a[j];
    });
    __syncthreads();
    by_warp(3, [&](int part) {
      const int lane = threadIdx.x % 32;
      if (part < 2) {
        warp_softmax(a + (part + 1) * d, a + (part + 1) * d, d);
      } else if (lane < 4) {
        beta[lane] = on ? sigmoid(beta[lane]) : 0.0f;
      }
    });
    __syncthreads();
    float* kept = static_cast<float*>(p.kept) + at * keeps;
    by_thread(2 * d + 4, [&](int j) { kept[j] = q[j]; });
    by_thread(M, [&](int j) {
      const float change = sum_of(d, [&](int i) { return (q[i] - k[i]) * W[i * M + j]; });
      const float u = beta[part_of(j, d)] * change;
      kept[2 * d + 4 + j] = change;
      for (int i = 0; i < d; i++) W[i * M + j] += k[i] * u;
    });
  }
  __syncthreads();
  weights.leave(final_weights);
}

// G is the gradient of W. What was written is taken back from W, which lies in `room` if not in shared
// memory.
__global__ void __launch_bounds__(kSequentialThreads, 4)
    self_referential_backward_kernel(FWM_GPU_PARAMETER SelfReferential p, float* room, int matrices) {
  SharedMemory shared;
  const int d = int(p.d), M = 3 * d + 4, T = int(p.T), keeps = 5 * d + 8;
  const Index head = blockIdx.x, n = head / p.H;
  float *const beta = shared.take<float>(4), *const q = shared.take<float>(d), *const k = shared.take<float>(d);
  float *const x = shared.take<float>(d), *const dq = shared.take<float>(d), *const dk = shared.take<float>(d);
  // dW_t^T k_t, later times what it multiplies; what W^T (q - k) receives; what [y | q' | k' | beta'] does
  float *const du = shared.take<float>(M), *const d_change = shared.take<float>(M), *const da = shared.take<float>(M);
  const bool* mask = p.mask ? p.mask + n * p.T : nullptr;
  float* d_weights = static_cast<float*>(p.d_weights) + head * d * M;
  const Working gradient(shared, matrices > 0, static_cast<const float*>(p.d_final_weights) + head * d * M,
                         d_weights, d * M);
  const Working weights(shared, matrices > 1, static_cast<const float*>(p.final_weights) + head * d * M,
                        matrices > 1 ? nullptr : room + head * d * M, d * M);
  float *const G = gradient.data(), *const W = weights.data();
  for (int t = T - 1; t >= 0; t--) {
    const Index at = head * p.T + t;
    const bool on = !mask || mask[t];
    const float *kept = static_cast<const float*>(p.kept) + at * keeps, *change = kept + 2 * d + 4;
    by_thread(d, [&](int i) {
      q[i] = kept[i], k[i] = kept[d + i];
      x[i] = on ? static_cast<const float*>(p.x)[at * d + i] : 0.0f;
      da[i] = on ? static_cast<const float*>(p.dy)[at * d + i] : 0.0f;
    });
    by_thread(4, [&](int part) { beta[part] = kept[2 * d + part]; });
    __syncthreads();
    by_thread(M, [&](int j) {
      const float sum = column_sum(G, d, M, j, k);
      d_change[j] = beta[part_of(j, d)] * sum;
      du[j] = sum * change[j];
    });
    __syncthreads();
    by_warp(d + 4, [&](int i) {
      const int lane = threadIdx.x % 32;
      if (i >= d) {
        const int part = i - d;
        const float* of_part = du + part * d;
        const float sum = along_row(part < 3 ? d : 4, [&](int j) { return of_part[j]; });
        if (lane == 0) da[3 * d + part] = sum * beta[part] * (1.0f - beta[part]);
        return;
      }
      const float k_i = k[i], apart = q[i] - k_i;
      float to_k = 0.0f, to_apart = 0.0f;
#pragma unroll 1
      for (int j = lane; j < M; j += 32) {
        const float u = beta[part_of(j, d)] * change[j], old = G[i * M + j], w = W[i * M + j] - k_i * u;
        to_k += old * u, to_apart += w * d_change[j];
        W[i * M + j] = w, G[i * M + j] = old + apart * d_change[j];
      }
      to_k = warp_sum(to_k), to_apart = warp_sum(to_apart);
      if (lane == 0) dq[i] = to_apart, dk[i] = to_k - to_apart;
    });
    __syncthreads();
    by_warp(2, [&](int part) {
      if (part == 0) warp_softmax_gradient(q, dq, da + d, d);
      if (part == 1) warp_softmax_gradient(k, dk, da + 2 * d, d);
    });
    __syncthreads();
    by_warp(d, [&](int i) {
      const float x_i = x[i];
      const float sum = along_row(M, [&](int j) {
        G[i * M + j] += x_i * da[j];
        return W[i * M + j] * da[j];
      });
      if (threadIdx.x % 32 == 0) static_cast<float*>(p.dx)[at * d + i] = sum;
    });
    __syncthreads();
  }
  gradient.leave(d_weights);
}

}  // namespace gpu
}  // namespace fwm
