// Attention normalisation: z_t = z_{t-1} + k_t along a sequence, and the divisors it gives.
#pragma once

#include "features.cuh"
#include "launch.h"

namespace fwm {
namespace gpu {

constexpr int kNormalizerThreads = 256, kNormalizerSteps = 8;
constexpr int kNormalizerWarps = kNormalizerThreads / 32;

struct NormalizerTiles {
  FeatureTile q, k;
  float *ones, *sums;

  __device__ NormalizerTiles(SharedMemory& shared, const Features& f)
      : q(shared, kNormalizerSteps, int(f.K)),
        k(shared, kNormalizerSteps, int(f.K)),
        ones(shared.take<float>(kNormalizerSteps)),
        sums(shared.take<float>(3 * kNormalizerSteps * kNormalizerWarps)) {
    q.take_raw(shared, f, kNormalizerSteps);
    k.take_raw(shared, f, kNormalizerSteps);
  }
  static std::size_t bytes(const Features& f) {
    return 2 * FeatureTile::bytes(f, kNormalizerSteps, int(f.K)) +
           shared_bytes<float>(kNormalizerSteps) +
           shared_bytes<float>(3 * kNormalizerSteps * kNormalizerWarps);
  }
};

// denominator_t = z_t . q_t + eps; of the kind `full` kappa_t = z_{t-1} . k_t + eps, or -1 where nothing
// was written yet (as where z is all zero); z_T. One block per head, a few features per thread. With
// `rows`, row n of the batch starts from row rows[n] of z_0.
__global__ void __launch_bounds__(kNormalizerThreads, 4) normalizer_kernel(FWM_GPU_PARAMETER Causal a, const Index* rows) {
  constexpr int kMine = kMaxFeatures / kNormalizerThreads;
  SharedMemory shared;
  const NormalizerTiles tiles(shared, a.features);
  const Head own(a.H, blockIdx.x);
  const int K = int(a.features.K), tid = threadIdx.x;
  float z[kMine];
  const float* z_0 = static_cast<const float*>(a.normalizer);
  if (z_0) z_0 += ((rows ? rows[own.n] : own.n) * a.H + own.h) * K;
#pragma unroll
  for (int m = 0; m < kMine; m++) {
    const int j = tid + m * kNormalizerThreads;
    z[m] = z_0 && j < K ? z_0[j] : 0.0f;
  }
  if (tid < kNormalizerSteps) tiles.ones[tid] = 1.0f;
  for (int first = 0; first < a.T; first += kNormalizerSteps) {
    const Span span(a.T, first, kNormalizerSteps, false);
    const Head head(a.H, opaque(blockIdx.x));
    const bool* mask = mask_of(a, head);
    tiles.q.load(a.features, a.q, a.dtype, head, span, 0, K);
    tiles.k.load(a.features, a.k, a.dtype, head, span, 0, K, mask);
    __syncthreads();
    if (is_mapped(a.features)) {
      map_features(tiles.q, a.features, span, tiles.ones);
      map_features(tiles.k, a.features, span, tiles.ones, mask);
      __syncthreads();
    }
    for (int i = 0; i < span.count; i++) {
      float before = 0.0f, after = 0.0f, written = 0.0f;
#pragma unroll
      for (int m = 0; m < kMine; m++) {
        const int j = tid + m * kNormalizerThreads;
        if (j >= K) continue;
        const float k = tiles.k.phi[i * K + j];
        if (z[m] != 0.0f) written = 1.0f;
        before += z[m] * k;
        z[m] += k;
        after += z[m] * tiles.q.phi[i * K + j];
      }
      before = warp_sum(before), after = warp_sum(after), written = warp_sum(written);
      if (tid % 32 == 0) {
        float* sums = tiles.sums + 3 * (i * kNormalizerWarps + tid / 32);
        sums[0] = before, sums[1] = after, sums[2] = written;
      }
    }
    __syncthreads();
    for_steps(span, [&](int i, Index t) {
      float before = 0.0f, after = 0.0f, written = 0.0f;
      for (int w = 0; w < kNormalizerWarps; w++) {
        const float* sums = tiles.sums + 3 * (i * kNormalizerWarps + w);
        before += sums[0], after += sums[1], written += sums[2];
      }
      const Index at = head.index * a.T + t;
      static_cast<float*>(a.denominator)[at] = after + float(kAttnNormEps);
      if (a.kappa) {
        static_cast<float*>(a.kappa)[at] = written > 0.0f ? before + float(kAttnNormEps) : -1.0f;
      }
    });
  }
  float* z_T = static_cast<float*>(a.final_normalizer);
#pragma unroll
  for (int m = 0; m < kMine; m++) {
    const int j = tid + m * kNormalizerThreads;
    if (z_T && j < K) z_T[Index(own.index) * K + j] = z[m];
  }
}

}  // namespace gpu
}  // namespace fwm
