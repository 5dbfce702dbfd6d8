// From tensors to the plain sizes, pointers and strides that kernels take.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "problem.h"

namespace fwm {

using at::Tensor;
using Optional = std::optional<Tensor>;

inline DType storage(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return DType::f32;
    case at::kDouble: return DType::f64;
    case at::kBFloat16: return DType::bf16;
    case at::kHalf: return DType::f16;
    default:
      TORCH_CHECK_TYPE(false, "fwm kernels take float64, float32, bfloat16 and float16, found ", type);
  }
}

inline at::ScalarType arithmetic(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

inline bool is_fp64(const Tensor& x, const char* takes) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, takes,
                   " float32 and float64, found ", x.scalar_type());
  return x.scalar_type() == at::kDouble;
}
inline Tensor like(const Tensor& x) { return at::empty(x.sizes(), x.options()); }

inline Features features_of(const std::string& map, Index nu, bool sum_norm, Index d) {
  Features f;
  f.nu = nu;
  f.sum_norm = sum_norm;
  f.d = f.K = d;
  if (map == "elu") {
    f.map = FeatureMap::elu;
  } else if (map == "dpfp") {
    TORCH_CHECK_VALUE(nu >= 1 && nu <= 2 * d - 1, "dpfp: nu must be between 1 and 2 * head_dim - 1 = ",
                      2 * d - 1, ", found ", nu);
    f.map = FeatureMap::dpfp;
    f.K = 2 * nu * d;
  } else {
    TORCH_CHECK_VALUE(map == "none", "the kernel knows the feature maps none, elu, dpfp, found ", map);
  }
  return f;
}

inline AttnNorm attn_norm_of(const std::string& kind) {
  if (kind == "output") return AttnNorm::output;
  if (kind == "full") return AttnNorm::full;
  TORCH_CHECK_VALUE(kind == "none", "attn_norm must be none, output or full, found ", kind);
  return AttnNorm::none;
}

// Rows contiguous and of the dtype given; other strides as they come.
inline Tensor rows_contiguous(const Tensor& x, at::ScalarType type) {
  const Tensor y = x.scalar_type() == type ? x : x.to(type);
  return y.size(-1) <= 1 || y.stride(-1) == 1 ? y : y.contiguous();
}

// (N, H, T, features), (N, H, T) or, without a time, (N, H, .)
inline Rows rows_of(const Tensor& x) {
  Rows rows;
  rows.data = x.data_ptr();
  rows.n = x.stride(0);
  rows.h = x.stride(1);
  rows.t = x.dim() > 2 ? x.stride(2) : 0;
  return rows;
}

inline Tensor dense(const Optional& x, at::ScalarType type) {
  return x && x->defined() ? x->to(type).contiguous() : Tensor();
}
inline const void* pointer(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }
inline void* mutable_pointer(const Tensor& x) {
  return x.defined() && x.numel() ? x.data_ptr() : nullptr;
}

// Empty, with the last dimension innermost and the others in memory as in `like`: what comes as a
// view of fairseq's (T, N, C) goes back without a copy.
inline Tensor empty_in_order_of(const Tensor& like, at::IntArrayRef sizes, at::ScalarType type) {
  const int dims = static_cast<int>(sizes.size());
  std::array<int, 4> order{};
  for (int i = 0; i < dims; i++) order[i] = i;
  const int outer = std::min<int>(dims, 3);
  std::stable_sort(order.begin(), order.begin() + outer,
                   [&](int a, int b) { return like.stride(a) > like.stride(b); });
  std::array<Index, 4> strides{};
  Index stride = 1;
  for (int i = dims - 1; i >= 0; i--) {
    strides[order[i]] = stride;
    stride *= std::max<Index>(sizes[order[i]], 1);
  }
  return at::empty_strided(sizes, at::IntArrayRef(strides.data(), dims), like.options().dtype(type));
}

struct Options {
  const std::string& features;
  Index nu;
  bool sum_norm;
  const std::string& attn_norm;
};

// A Causal and the tensors that keep its pointers alive.
struct Sequence {
  Causal a;
  at::ScalarType type, wide;
  bool fp64;
  Tensor q, k, v, beta, mask, state, normalizer;

  Sequence(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Optional& beta_,
           const Optional& state_, const Optional& normalizer_, const Optional& mask_,
           const Options& options) {
    type = c10::promoteTypes(c10::promoteTypes(q_.scalar_type(), k_.scalar_type()), v_.scalar_type());
    wide = arithmetic(type);
    fp64 = wide == at::kDouble;
    q = rows_contiguous(q_, type), k = rows_contiguous(k_, type), v = rows_contiguous(v_, type);
    a.N = q.size(0), a.H = q.size(1), a.T = q.size(2), a.V = v.size(3);
    a.dtype = storage(type);
    a.features = features_of(options.features, options.nu, options.sum_norm, q.size(3));
    a.attn_norm = attn_norm_of(options.attn_norm);
    a.q = rows_of(q), a.k = rows_of(k), a.v = rows_of(v);
    if (beta_) {
      beta = beta_->to(wide);
      a.beta = rows_of(beta);
    }
    if (mask_) mask = mask_->contiguous();
    state = dense(state_, wide), normalizer = dense(normalizer_, wide);
    a.mask = static_cast<const bool*>(pointer(mask));
    a.state = pointer(state), a.normalizer = pointer(normalizer);
  }

  bool delta() const { return beta.defined(); }
  bool norm() const { return a.attn_norm != AttnNorm::none; }
  bool full() const { return a.attn_norm == AttnNorm::full; }
  Index heads() const { return a.N * a.H; }
  Tensor empty(at::IntArrayRef sizes) const { return at::empty(sizes, q.options().dtype(wide)); }
  Tensor none() const { return empty({0}); }
};

}  // namespace fwm
