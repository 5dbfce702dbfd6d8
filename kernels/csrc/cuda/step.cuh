// One time step on states in memory. A warp's lanes hold neighbouring columns, so that a row of the state
// is read and written in whole sectors; the rows are shared out over the warps.
#pragma once

#include "features.cuh"

namespace fwm {
namespace gpu {

struct StepTiles {
  FeatureTile q, k;
  float *ones, *retrieved, *read;

  __device__ StepTiles(SharedMemory& shared, const Features& f, int warps)
      : q(shared, 1, int(f.K)), k(shared, 1, int(f.K)), ones(shared.take<float>(1)) {
    retrieved = shared.take<float>(32 * warps);
    read = shared.take<float>(32 * warps);
    q.take_raw(shared, f, 1);
    k.take_raw(shared, f, 1);
  }
  static std::size_t bytes(const Features& f, int warps) {
    return 2 * FeatureTile::bytes(f, 1, int(f.K)) + shared_bytes<float>(1) +
           2 * shared_bytes<float>(32 * warps);
  }
};

__device__ __forceinline__ float sum_over_warps(const float* sums) {
  float sum = 0.0f;
  for (unsigned w = 0; w < blockDim.x / 32; w++) sum += sums[32 * w + threadIdx.x % 32];
  return sum;
}

__device__ __forceinline__ float load_number(const Rows& rows, DType dtype, Index at) {
  float x;
  with_storage(dtype, [&](auto storage) {
    x = to_float(static_cast<const decltype(storage)*>(rows.data)[at]);
  });
  return x;
}

// At most: a thread with more rows needs more registers.
template <int Slice>
constexpr int kStepThreads = Slice == 16 ? 512 : 256;

// A warp has Slice neighbouring rows of the state in registers; with Parts of them it reads the state
// twice for the delta rule.
template <int Slice, int Parts, bool Delta>
__global__ void __launch_bounds__(kStepThreads<Slice>, Slice == 16 ? 2 : 1)
    step_kernel(FWM_GPU_PARAMETER Step a, const float* denominator, const float* kappa) {
  SharedMemory shared;
  const StepTiles tile(shared, a.features, blockDim.x / 32);
  const Head head(a.H, blockIdx.x);
  const Span now(1, 0, 1, false);
  const int K = int(a.features.K), V = int(a.V), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int c = blockIdx.y * 32 + lane;
  const Index source = a.rows ? a.rows[head.n] : head.n;
  FWM_GPU_CHECK(source >= 0 && source < a.source_rows);
  const float* old = static_cast<const float*>(a.state) + (source * a.H + head.h) * K * V;
  float* fresh = static_cast<float*>(a.new_state) + Index(head.index) * K * V;
  const bool* mask = of_sequence(a.mask, head.n, 1);
  const bool writes = !mask || *mask;
  tile.q.load(a.features, a.q, a.dtype, head, now, 0, K);
  tile.k.load(a.features, a.k, a.dtype, head, now, 0, K, mask);
  if (threadIdx.x == 0) tile.ones[0] = 1.0f;
  float s[Slice];
  const auto first_row = [&](int part) { return (part * int(blockDim.x / 32) + warp) * Slice; };
  const auto load = [&](int part) {
#pragma unroll
    for (int i = 0; i < Slice; i++) {
      const int j = first_row(part) + i;
      s[i] = j < K && c < V ? old[Index(j) * V + c] : 0.0f;
    }
  };
  if (Parts == 1) load(0);
  __syncthreads();
  if (is_mapped(a.features)) {
    map_features(tile.q, a.features, now, tile.ones);
    map_features(tile.k, a.features, now, tile.ones, mask);
    __syncthreads();
  }
  const float q_divisor = denominator ? denominator[head.index] : 1.0f;
  const float k_divisor = kappa ? fabsf(kappa[head.index]) : 1.0f;
  float x = 0.0f;
  if (writes && c < V) x = load_number(a.v, a.dtype, head.offset(a.v) + c);
  if (Delta) {
    float sum = 0.0f;
    for (int part = 0; part < Parts; part++) {
      if (Parts > 1) load(part);
#pragma unroll
      for (int i = 0; i < Slice; i++) {
        const int j = first_row(part) + i;
        if (j < K) sum += s[i] * (tile.k.phi[j] / k_divisor);
      }
    }
    tile.retrieved[threadIdx.x] = sum;
    __syncthreads();
    const float* betas = static_cast<const float*>(a.beta.data);
    const float beta = writes ? betas[head.offset(a.beta)] * k_divisor : 0.0f;
    x = beta * (x - sum_over_warps(tile.retrieved));
  }
  float sum = 0.0f;
  for (int part = 0; part < Parts; part++) {
    if (Parts > 1) load(part);
#pragma unroll
    for (int i = 0; i < Slice; i++) {
      const int j = first_row(part) + i;
      if (j >= K) continue;
      s[i] += tile.k.phi[j] / k_divisor * x;
      sum += s[i] * (tile.q.phi[j] / q_divisor);
      if (c < V) fresh[Index(j) * V + c] = s[i];
    }
  }
  tile.read[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || c >= V) return;
  const float y = sum_over_warps(tile.read);
  with_storage(a.dtype, [&](auto storage) {
    using F = decltype(storage);
    static_cast<F*>(a.y.data)[head.offset(a.y) + c] = from_float<F>(y);
  });
}

template <int Slice, int Parts>
void launch_step(const Step& a, const float* denominator, const float* kappa, cudaStream_t stream) {
  const int warps = int(a.features.K + Slice * Parts - 1) / (Slice * Parts);
  const dim3 grid(unsigned(a.N * a.H), unsigned((a.V + 31) / 32)), block(32 * warps);
  const std::size_t bytes = StepTiles::bytes(a.features, warps);
  if (a.delta) {
    FWM_GPU_LAUNCH((step_kernel<Slice, Parts, true>), grid, block, bytes, stream, a, denominator, kappa);
  } else {
    FWM_GPU_LAUNCH((step_kernel<Slice, Parts, false>), grid, block, bytes, stream, a, denominator, kappa);
  }
}

}  // namespace gpu
}  // namespace fwm
