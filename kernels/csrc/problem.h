// What a kernel is given: sizes, raw pointers, element strides. Plain data, the same for every ISA.
#pragma once

#include <cstdint>

namespace fwm {

using Index = std::int64_t;

enum class DType { f32, f64, bf16, f16 };
enum class FeatureMap { none, elu, dpfp };
enum class AttnNorm { none, output, full };

// Keeps phi / sum(phi) and y / (z . q) finite; the same as in fairseq_fwm/ops.
constexpr double kSumNormEps = 1e-6;
constexpr double kAttnNormEps = 1e-5;

// A tensor (N, H, T, features) of the storage dtype whose features are contiguous.
struct Rows {
  void* data = nullptr;
  Index n = 0, h = 0, t = 0;  // strides, in elements

  explicit operator bool() const { return data != nullptr; }
};

// phi, and how much of it an op applies to raw queries and keys itself.
struct Features {
  FeatureMap map = FeatureMap::none;
  Index nu = 1;
  bool sum_norm = false;
  Index d = 0;  // size of a raw row
  Index K = 0;  // size of a feature row
};

// causal_sum and causal_delta, forward and backward. Null is absent. What has no strides is
// contiguous and of the arithmetic's dtype: fp64 where storage is fp64, fp32 elsewhere.
struct Causal {
  Index N = 0, H = 0, T = 0, V = 0;
  DType dtype = DType::f32;
  Features features;
  AttnNorm attn_norm = AttnNorm::none;
  bool quadratic = false;  // the form without a state: none comes in, none is wanted

  Rows q, k, v;
  Rows beta;                      // arithmetic dtype, one feature; delta only
  const bool* mask = nullptr;     // (N, T): whether a position writes
  const void* state = nullptr;    // S_0 (N, H, K, V)
  const void* normalizer = nullptr;  // z_0 (N, H, K)
  Rows y;

  // Left by the forward pass for the backward pass; written only if not null.
  void* residual = nullptr;     // r_t = v_t - S_{t-1}^T k_t (N, H, T, V); delta only
  void* denominator = nullptr;  // z_t . q_t + eps (N, H, T)
  void* kappa = nullptr;        // z_{t-1} . k_t + eps (N, H, T); -1: nothing was written yet
  void* final_state = nullptr;
  void* final_normalizer = nullptr;

  // Backward.
  Rows dy, dq, dk, dv;
  Rows dbeta;                                  // arithmetic dtype
  const void* d_final_state = nullptr;
  const void* d_final_normalizer = nullptr;
  void* d_state = nullptr;
  void* d_normalizer = nullptr;
};

// One time step: T = 1 of the above, with the new state where the caller says.
struct Step {
  Index N = 0, H = 0, V = 0;
  Index source_rows = 0;  // N of the old state
  bool delta = false;
  DType dtype = DType::f32;
  Features features;
  AttnNorm attn_norm = AttnNorm::none;
  Rows q, k, v, beta, y;                 // t strides unused; beta of the arithmetic's dtype
  const bool* mask = nullptr;            // (N)
  const Index* rows = nullptr;           // row b starts from row rows[b] of the old state
  const void *state = nullptr, *normalizer = nullptr;
  void *new_state = nullptr, *new_normalizer = nullptr;  // may be the old ones
};

// A feature map by itself: (rows, d) -> (rows, K), and back.
struct Map {
  Index count = 0;
  DType dtype = DType::f32;
  Features features;
  const void* x = nullptr;
  void* phi = nullptr;
  const void* dphi = nullptr;
  void* dx = nullptr;
};

// exp(min((u, -u) - offset, cap)), the costly part of FAVOR+: (rows, m) -> (rows, 2m).
struct Favor {
  Index count = 0, m = 0;
  double scale = 1, added = 0, cap = 0;
  const void *u = nullptr, *offset = nullptr;
  void* phi = nullptr;  // read by the backward pass
  const void* dphi = nullptr;
  void *du = nullptr, *d_offset = nullptr;
};

// The rescaled delta rule on `count` sequences: gram and history (count, T, T), the lower triangle of
// gram counting; rows (count, T, V); beta and decay (count, T).
struct Rescaled {
  Index count = 0, T = 0, V = 0;
  const void *gram = nullptr, *v = nullptr, *beta = nullptr;
  void *residual = nullptr, *history = nullptr;  // read by the backward pass
  const void *d_residual = nullptr, *d_decay = nullptr;
  void *d_gram = nullptr, *d_v = nullptr, *d_beta = nullptr;
};

// The recurrent delta rule: x (N, H, T, 3d + 1), weights (H, d, 3d + 1), states (N, H, d, d), last
// outputs (N, H, d), the rest (N, H, T, d); mask (N, T). `kept` belongs to the kernel.
struct Recurrent {
  Index N = 0, H = 0, T = 0, d = 0;
  const bool* mask = nullptr;
  const void *x = nullptr, *weights = nullptr, *state = nullptr, *last = nullptr;
  void *y = nullptr, *final_state = nullptr, *final_last = nullptr;
  void *kept = nullptr, *feedback = nullptr;  // read by the backward pass
  const void *dy = nullptr, *d_final_state = nullptr, *d_final_last = nullptr;
  void *dx = nullptr, *d_state = nullptr, *d_last = nullptr;
};

// The self-referential weight matrix: weights (N, H, d, 3d + 4), the rest (N, H, T, d); mask (N, T).
struct SelfReferential {
  Index N = 0, H = 0, T = 0, d = 0;
  const bool* mask = nullptr;
  const void *x = nullptr, *weights = nullptr;
  void *y = nullptr, *final_weights = nullptr;
  void* kept = nullptr;  // read by the backward pass
  const void *dy = nullptr, *d_final_weights = nullptr;
  void *dx = nullptr, *d_weights = nullptr;
};

}  // namespace fwm
