// phi by rows in shared memory, and its gradient: one warp per row. See cpu/features.h.
#pragma once

#include "tile.cuh"
#include "warp.cuh"

namespace fwm {
namespace gpu {

__host__ __device__ inline bool is_mapped(const Features& f) {
  return f.map != FeatureMap::none || f.sum_norm;
}

// r = [relu(x), relu(-x)]; any i that is less than 2d away from its range is taken cyclically.
__device__ __forceinline__ float rectified(const float* x, int d, int i) {
  i = i < 0 ? i + 2 * d : i >= 2 * d ? i - 2 * d : i;
  return i < d ? fmaxf(x[i], 0.0f) : fmaxf(-x[i - d], 0.0f);
}

// Call run(j, phi_j) for the lane's share of the features of x, without sum normalisation.
template <class Run>
__device__ __forceinline__ void for_features(const Features& f, const float* x, Run run) {
  const int lane = threadIdx.x % 32, d = int(f.d);
  if (f.map != FeatureMap::dpfp) {
    for (int j = lane; j < d; j += 32) {
      run(j, f.map == FeatureMap::none ? x[j] : x[j] > 0.0f ? x[j] + 1.0f : expf(x[j]));
    }
    return;
  }
  for (int shift = 1; shift <= int(f.nu); shift++) {
    for (int i = lane; i < 2 * d; i += 32) {
      run((shift - 1) * 2 * d + i, rectified(x, d, i) * rectified(x, d, i - shift));
    }
  }
}

// Call run(j) for the same features in the same lanes.
template <class Run>
__device__ __forceinline__ void for_features_of_lane(const Features& f, Run run) {
  const int lane = threadIdx.x % 32, block = f.map == FeatureMap::dpfp ? 2 * int(f.d) : int(f.K);
  for (int first = 0; first < int(f.K); first += block) {
    for (int i = lane; i < block; i += 32) run(first + i);
  }
}

// Queries or keys of a block of time steps: features in `phi` (rows of `ld` numbers), raw rows in
// `raw`, which is `phi` itself where nothing is mapped.
struct FeatureTile {
  float *phi, *raw;
  int ld;

  __device__ FeatureTile(SharedMemory& shared, int steps, int ld_)
      : phi(shared.take<float>(steps * ld_)), raw(phi), ld(ld_) {}
  // Taken last: its size depends on the map.
  __device__ void take_raw(SharedMemory& shared, const Features& f, int steps) {
    if (is_mapped(f)) raw = shared.take<float>(steps * int(f.d));
  }
  static std::size_t bytes(const Features& f, int steps, int ld) {
    return shared_bytes<float>(steps * ld) +
           (is_mapped(f) ? shared_bytes<float>(steps * int(f.d)) : 0);
  }

  // Columns [begin, begin + width): all of them where rows are mapped.
  __device__ __forceinline__ void load(const Features& f, const Rows& rows, DType dtype,
                                       const Head& head, const Span& span, int begin, int width,
                                       const bool* mask = nullptr) const {
    const int d = int(f.d);
    if (is_mapped(f)) begin = 0, width = d;
    load_tile(raw, is_mapped(f) ? d : ld, rows, dtype, head, span, begin, width, mask);
  }
};

// After a barrier: apply the map and divide row i by divisor[i]; masked rows become zeros.
__device__ __forceinline__ void map_features(FeatureTile tile, const Features& f, Span span, const float* divisor,
                               const bool* mask = nullptr) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int i = threadIdx.x / 32; i < span.count; i += warps) {
    float* row = tile.phi + i * tile.ld;
    const bool writes = !mask || mask[span.time(i)];
    float factor = writes ? __fdividef(1.0f, divisor[i]) : 0.0f;
    if (!is_mapped(f)) {
      for (int j = lane; j < tile.ld; j += 32) row[j] *= factor;
      continue;
    }
    float sum = 0.0f;
    for_features(f, tile.raw + i * int(f.d), [&](int j, float x) { row[j] = x, sum += x; });
    if (f.sum_norm) factor = __fdividef(factor, warp_sum(sum) + float(kSumNormEps));
    for_features_of_lane(f, [&](int j) { row[j] *= factor; });
    for (int j = int(f.K) + lane; j < tile.ld; j += 32) row[j] = 0.0f;
  }
}

// dr_i = sum_s dphi_s,i r_{i-s} + dphi_s,i+s r_{i+s}; of r_c and r_{c+d} at most one depends on x_c.
__device__ inline float dpfp_backward(const Features& f, const float* x, const float* d_phi, int c) {
  const int d = int(f.d);
  if (x[c] == 0.0f) return 0.0f;
  const int i = x[c] > 0.0f ? c : c + d;
  float sum = 0.0f;
  for (int shift = 1; shift <= int(f.nu); shift++) {
    const float* block = d_phi + (shift - 1) * 2 * d;
    const int ahead = i + shift >= 2 * d ? i + shift - 2 * d : i + shift;
    sum += block[i] * rectified(x, d, i - shift) + block[ahead] * rectified(x, d, ahead);
  }
  return x[c] > 0.0f ? sum : -sum;
}

// Gradient of the raw row x from that of its features, which is overwritten: run(c, dx_c). For one warp.
template <class Run>
__device__ __forceinline__ void map_backward(const Features& f, const float* x, float* d_phi, Run run) {
  const int lane = threadIdx.x % 32, d = int(f.d);
  if (f.sum_norm) {
    float sum = 0.0f, along = 0.0f;
    for_features(f, x, [&](int j, float phi_j) { sum += phi_j, along += phi_j * d_phi[j]; });
    const float factor = __fdividef(1.0f, warp_sum(sum) + float(kSumNormEps));
    along = warp_sum(along) * factor;
    for_features_of_lane(f, [&](int j) { d_phi[j] = (d_phi[j] - along) * factor; });
    __syncwarp();
  }
  for (int c = lane; c < d; c += 32) {
    if (f.map == FeatureMap::none) {
      run(c, d_phi[c]);
    } else if (f.map == FeatureMap::elu) {
      run(c, x[c] > 0.0f ? d_phi[c] : d_phi[c] * expf(x[c]));
    } else {
      run(c, dpfp_backward(f, x, d_phi, c));
    }
  }
}

// Where the gradient of queries or keys goes. Several passes may add to it, in fp32: in the rows
// themselves or, where they are of half precision, in `wide` (N, H, T, d) until the last one.
struct Sink {
  Rows out;
  DType dtype = DType::f32;
  float* wide = nullptr;
  bool add = false, last = true;

  __device__ void store(const Causal& a, const Head& head, Index t, int c, float x) const {
    const Index row = head.offset(out) + t * out.t + c;
    float* sum = wide ? wide + (head.index * a.T + t) * a.features.d + c : static_cast<float*>(out.data) + row;
    if (add) x += *sum;
    if (!last || dtype == DType::f32) {
      *sum = x;
    } else if (dtype == DType::bf16) {
      static_cast<Bf16*>(out.data)[row] = from_float<Bf16>(x);
    } else {
      static_cast<Half*>(out.data)[row] = from_float<Half>(x);
    }
  }
};

// Gradients of the features of a block of time steps to the raw rows; masked rows get zeros.
__device__ __forceinline__ void store_gradients(const Causal& a, const Sink& sink, bool masked, const float* raw,
                                  float* d_phi, int ld, Span span, int begin, int width) {
  const Features& f = a.features;
  const Head head(a.H, blockIdx.x);
  const bool* mask = masked ? mask_of(a, head) : nullptr;
  const auto writes = [&](Index t) { return !mask || mask[t]; };
  if (!is_mapped(f)) {
    for_elements(span.count, width, [&](int i, int c) {
      const Index t = span.time(i);
      sink.store(a, head, t, begin + c, writes(t) ? d_phi[i * ld + c] : 0.0f);
    });
    return;
  }
  for (int i = threadIdx.x / 32; i < span.count; i += blockDim.x / 32) {
    const Index t = span.time(i);
    map_backward(f, raw + i * int(f.d), d_phi + i * ld, [&](int c, float dx) {
      sink.store(a, head, t, c, writes(t) ? dx : 0.0f);
    });
  }
}

}  // namespace gpu
}  // namespace fwm
