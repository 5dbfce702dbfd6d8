// What the lanes of a warp compute together.
#pragma once

#include "gpu.cuh"

namespace fwm {
namespace gpu {

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  return x;
}

// p = softmax(x), which may be the same d numbers.
__device__ __forceinline__ void warp_softmax(const float* x, float* p, int d) {
  const int lane = threadIdx.x % 32;
  float largest = -3.402823466e38f, sum = 0.0f;
  for (int i = lane; i < d; i += 32) largest = fmaxf(largest, x[i]);
  largest = warp_max(largest);
  for (int i = lane; i < d; i += 32) {
    const float e = expf(x[i] - largest);
    p[i] = e, sum += e;
  }
  const float factor = 1.0f / warp_sum(sum);
  for (int i = lane; i < d; i += 32) p[i] *= factor;
}
// From the gradient of p = softmax(x) to that of x.
__device__ __forceinline__ void warp_softmax_gradient(const float* p, const float* dp, float* dx, int d) {
  const int lane = threadIdx.x % 32;
  float mean = 0.0f;
  for (int i = lane; i < d; i += 32) mean += p[i] * dp[i];
  mean = warp_sum(mean);
  for (int i = lane; i < d; i += 32) dx[i] = p[i] * (dp[i] - mean);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

}  // namespace gpu
}  // namespace fwm
