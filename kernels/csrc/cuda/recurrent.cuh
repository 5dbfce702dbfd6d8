// The recurrent delta rule, forward and backward in time: see ../cpu/recurrent.h.
#pragma once

#include "sequential.cuh"

namespace fwm {
namespace gpu {

struct RecurrentPlan : Sequential {
  static std::size_t vectors(Index d, bool backward) {
    const int n = int(d);
    return backward ? shared_bytes<float>(3 * n + 1) + 8 * shared_bytes<float>(n)
                    : shared_bytes<float>(3 * n + 1) + 2 * shared_bytes<float>(n);
  }
  RecurrentPlan(const Recurrent& a, bool backward, std::size_t limit)
      : Sequential(3 * a.d + 1, vectors(a.d, backward), backward ? 2 : 1, a.d * a.d, limit) {}
};

__global__ void __launch_bounds__(kSequentialThreads, 4)
    recurrent_forward_kernel(FWM_GPU_PARAMETER Recurrent p, int matrices) {
  SharedMemory shared;
  const int d = int(p.d), M = 3 * d + 1, T = int(p.T);
  const Index head = blockIdx.x, n = head / p.H, h = head % p.H;
  // q' | k' | v' | beta', then with activations
  float *const a = shared.take<float>(M), *const s = shared.take<float>(d), *const y = shared.take<float>(d);
  float *const q = a, *const k = a + d, *const v = a + 2 * d;
  const float* R = static_cast<const float*>(p.weights) + h * d * M;
  const bool* mask = p.mask ? p.mask + n * p.T : nullptr;
  float* final_state = static_cast<float*>(p.final_state) + head * d * d;
  const Working state(shared, matrices > 0, static_cast<const float*>(p.state) + head * d * d, final_state, d * d);
  float* const S = state.data();
  by_thread(d, [&](int j) { y[j] = static_cast<const float*>(p.last)[head * d + j]; });
  for (int t = 0; t < T; t++) {
    const Index at = head * p.T + t;
    const bool on = !mask || mask[t];
    const float* x = static_cast<const float*>(p.x) + at * M;
    by_thread(d, [&](int j) {
      s[j] = tanhf(y[j]);
      static_cast<float*>(p.feedback)[at * d + j] = s[j];
    });
    __syncthreads();
    by_thread(M, [&](int j) { a[j] = (on ? x[j] : 0.0f) + column_sum(R, d, M, j, s); });
    __syncthreads();
    by_warp(2, [&](int part) { warp_softmax(a + part * d, a + part * d, d); });
    const float beta = on ? sigmoid(a[3 * d]) : 0.0f;
    __syncthreads();
    float* kept = static_cast<float*>(p.kept) + at * M;  // q | k | v - S^T k | beta
    by_thread(d, [&](int j) {
      const float rest = v[j] - column_sum(S, d, d, j, k), u = beta * rest;
      const float out = sum_of(d, [&](int i) { return q[i] * (S[i * d + j] += k[i] * u); });
      kept[j] = q[j], kept[d + j] = k[j], kept[2 * d + j] = rest;
      if (j == 0) kept[3 * d] = beta;
      static_cast<float*>(p.y)[at * d + j] = on ? out : 0.0f;
      if (on) y[j] = out;
    });
  }
  __syncthreads();
  state.leave(final_state);
  by_thread(d, [&](int j) { static_cast<float*>(p.final_last)[head * d + j] = y[j]; });
}

// G is the gradient of S, the carry that of the last output. What was written is taken back from S,
// which lies in `states` if not in shared memory.
__global__ void __launch_bounds__(kSequentialThreads, 4)
    recurrent_backward_kernel(FWM_GPU_PARAMETER Recurrent p, float* states, int matrices) {
  SharedMemory shared;
  const int d = int(p.d), M = 3 * d + 1, T = int(p.T);
  const Index head = blockIdx.x, n = head / p.H, h = head % p.H;
  float *const da = shared.take<float>(M), *const q = shared.take<float>(d), *const k = shared.take<float>(d);
  float *const r = shared.take<float>(d), *const g = shared.take<float>(d), *const erased = shared.take<float>(d);
  float *const dq = shared.take<float>(d), *const dk = shared.take<float>(d), *const carry = shared.take<float>(d);
  const float* R = static_cast<const float*>(p.weights) + h * d * M;
  const bool* mask = p.mask ? p.mask + n * p.T : nullptr;
  float* d_state = static_cast<float*>(p.d_state) + head * d * d;
  const Working gradient(shared, matrices > 0, static_cast<const float*>(p.d_final_state) + head * d * d,
                         d_state, d * d);
  const Working state(shared, matrices > 1, static_cast<const float*>(p.final_state) + head * d * d,
                      matrices > 1 ? nullptr : states + head * d * d, d * d);
  float *const G = gradient.data(), *const S = state.data();
  by_thread(d, [&](int j) { carry[j] = static_cast<const float*>(p.d_final_last)[head * d + j]; });
  for (int t = T - 1; t >= 0; t--) {
    const Index at = head * p.T + t;
    const bool on = !mask || mask[t];
    const float* kept = static_cast<const float*>(p.kept) + at * M;
    const float* s = static_cast<const float*>(p.feedback) + at * d;
    const float* dy = static_cast<const float*>(p.dy) + at * d;
    const float beta = kept[3 * d];
    by_thread(d, [&](int j) {
      q[j] = kept[j], k[j] = kept[d + j], r[j] = kept[2 * d + j];
      g[j] = on ? dy[j] + carry[j] : 0.0f;
    });
    __syncthreads();
    by_warp(d, [&](int i) {
      const float q_i = q[i], k_i = k[i];
      float to_q = 0.0f, to_k = 0.0f;
#pragma unroll 1
      for (int j = threadIdx.x % 32; j < d; j += 32) {
        const float u = beta * r[j], e = G[i * d + j] + q_i * g[j], old = S[i * d + j];
        to_q += old * g[j], to_k += e * u;
        G[i * d + j] = e, S[i * d + j] = old - k_i * u;
      }
      to_q = warp_sum(to_q), to_k = warp_sum(to_k);
      if (threadIdx.x % 32 == 0) dq[i] = to_q, dk[i] = to_k;
    });
    __syncthreads();
    by_thread(d, [&](int j) {
      const float change = column_sum(G, d, d, j, k);
      da[2 * d + j] = beta * change;
      erased[j] = -beta * change;
      r[j] *= change;
    });
    __syncthreads();
    by_warp(d + 1, [&](int i) {
      const int lane = threadIdx.x % 32;
      if (i == d) {
        const float d_beta = along_row(d, [&](int j) { return r[j]; });
        if (lane == 0) da[3 * d] = d_beta * beta * (1.0f - beta);
        return;
      }
      const float k_i = k[i];
      const float sum = along_row(d, [&](int j) {
        G[i * d + j] += k_i * erased[j];
        return S[i * d + j] * erased[j];
      });
      if (lane == 0) dk[i] += sum;
    });
    __syncthreads();
    by_warp(2, [&](int part) {
      if (part == 0) warp_softmax_gradient(q, dq, da, d);
      if (part == 1) warp_softmax_gradient(k, dk, da + d, d);
    });
    __syncthreads();
    by_warp(d, [&](int i) {
      const float sum = along_row(M, [&](int j) { return R[i * M + j] * da[j]; });
      if (on && threadIdx.x % 32 == 0) carry[i] = (1.0f - s[i] * s[i]) * sum;
    });
    by_thread(M, [&](int j) { static_cast<float*>(p.dx)[at * M + j] = da[j]; });
    __syncthreads();
  }
  gradient.leave(d_state);
  by_thread(d, [&](int j) { static_cast<float*>(p.d_last)[head * d + j] = carry[j]; });
}

}  // namespace gpu
}  // namespace fwm
