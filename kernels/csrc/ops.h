// The ops on any device: what is allocated, saved and returned. A device computes.
//
// Device::forward(Sequence&) and Device::backward(Sequence&) run causal_sum or causal_delta on a
// Causal that is filled in; Device::step(Step&, fp64, Device::Rows) runs one time step.
#pragma once

#include <torch/library.h>

#include <tuple>
#include <vector>

#include "tensors.h"

namespace fwm {

using Three = std::tuple<Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// ---- sequences

template <class Device>
Six causal_fwd(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& beta,
               const Optional& state, const Optional& normalizer, const Optional& mask,
               const Options& options, bool output_final_state, bool save) {
  Sequence s(q, k, v, beta, state, normalizer, mask, options);
  Causal& a = s.a;
  const Tensor y = empty_in_order_of(s.v, v.sizes(), s.type);
  const Index K = a.features.K;
  const Tensor S = output_final_state ? s.empty({a.N, a.H, K, a.V}) : s.none();
  const Tensor z = output_final_state && s.norm() ? s.empty({a.N, a.H, K}) : s.none();
  const Tensor residual = save && beta ? s.empty({a.N, a.H, a.T, a.V}) : s.none();
  const Tensor denominator = save && s.norm() ? s.empty({a.N, a.H, a.T}) : s.none();
  const Tensor kappa = save && s.full() ? s.empty({a.N, a.H, a.T}) : s.none();
  a.y = rows_of(y);
  a.final_state = mutable_pointer(S), a.final_normalizer = mutable_pointer(z);
  a.residual = mutable_pointer(residual);
  a.denominator = mutable_pointer(denominator), a.kappa = mutable_pointer(kappa);
  if (a.V > 0 && s.heads() > 0) Device::forward(s);
  return {y.scalar_type() == v.scalar_type() ? y : y.to(v.scalar_type()), S, z, residual, denominator,
          kappa};
}

template <class Device>
Six causal_bwd(const Tensor& dy_, const Optional& dS_, const Optional& dz_, const Tensor& q,
               const Tensor& k, const Tensor& v, const Optional& beta, const Optional& state,
               const Optional& normalizer, const Optional& mask, const Optional& y_,
               const Tensor& residual, const Tensor& denominator, const Tensor& kappa,
               const Options& options, bool state_grad) {
  Sequence s(q, k, v, beta, state, normalizer, mask, options);
  Causal& a = s.a;
  const Tensor dy = rows_contiguous(dy_, s.type);
  const Tensor dq = empty_in_order_of(s.q, q.sizes(), s.type);
  const Tensor dk = empty_in_order_of(s.k, k.sizes(), s.type);
  const Tensor dv = empty_in_order_of(s.v, v.sizes(), s.type);
  const Tensor dbeta = beta ? empty_in_order_of(s.beta, beta->sizes(), s.wide) : s.none();
  const Index K = a.features.K;
  const Tensor d_state = state_grad ? s.empty({a.N, a.H, K, a.V}) : s.none();
  const Tensor d_normalizer = state_grad && s.norm() ? s.empty({a.N, a.H, K}) : s.none();
  const Tensor dS = dense(dS_, s.wide), dz = dense(dz_, s.wide);
  Tensor y;
  if (s.norm()) {
    TORCH_CHECK(y_, "the backward pass of attention normalisation needs the output");
    y = rows_contiguous(*y_, s.type);
    a.y = rows_of(y);
  }
  a.dy = rows_of(dy), a.dq = rows_of(dq), a.dk = rows_of(dk), a.dv = rows_of(dv);
  if (beta) a.dbeta = rows_of(dbeta);
  a.residual = mutable_pointer(residual);
  a.denominator = mutable_pointer(denominator), a.kappa = mutable_pointer(kappa);
  TORCH_CHECK((!beta || a.residual || !s.v.numel()) && (!s.norm() || a.denominator || !s.v.numel()),
              "the backward pass needs what the forward pass keeps with save_for_backward");
  a.d_final_state = pointer(dS), a.d_final_normalizer = pointer(dz);
  a.d_state = mutable_pointer(d_state), a.d_normalizer = mutable_pointer(d_normalizer);
  if (s.heads() > 0) Device::backward(s);
  return {dq.to(q.scalar_type()), dk.to(k.scalar_type()), dv.to(v.scalar_type()),
          beta ? dbeta.to(beta->scalar_type()) : dbeta, d_state, d_normalizer};
}

// ---- steps

// Checked here and not in Python: a step takes a few microseconds.
inline void expect(const char* name, const Tensor& x, at::IntArrayRef wanted) {
  TORCH_CHECK_VALUE(x.sizes() == wanted,
                    "a step takes q, k (N, H, K), v (N, H, V), beta (N, H), state (N, H, K, V) and "
                    "write_mask (N,): ", name, " should be ", wanted, ", found ", x.sizes());
}

inline void check_step(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& beta,
                       const Tensor& state, const Optional& normalizer, const Optional& rows,
                       const Optional& mask, Index K) {
  TORCH_CHECK_VALUE(k.dim() == 3 && v.dim() == 3, "a step takes k (N, H, K) and v (N, H, V), found ",
                    k.sizes(), " and ", v.sizes());
  const Index N = k.size(0), H = k.size(1), V = v.size(2), old = rows ? state.size(0) : N;
  expect("q", q, k.sizes());
  expect("v", v, {N, H, V});
  expect("state", state, {old, H, K, V});
  if (beta) expect("beta", *beta, {N, H});
  if (normalizer) expect("normalizer", *normalizer, {old, H, K});
  if (rows) expect("rows", *rows, {N});
  if (!mask) return;
  expect("write_mask", *mask, {N});
  TORCH_CHECK_VALUE(mask->scalar_type() == at::kBool,
                    "write_mask must be bool (True: this position writes), found ",
                    mask->scalar_type());
}

template <class Device>
void run_step(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Optional& beta_,
              const Tensor& state, const Optional& normalizer, const Optional& rows_,
              const Optional& mask_, const Options& options, const Tensor& y, const Tensor& new_state,
              const Tensor& new_normalizer) {
  const at::ScalarType type = y.scalar_type(), wide = arithmetic(type);
  TORCH_CHECK_TYPE(state.scalar_type() == wide, "the state of a step must be ", wide, ", found ",
                   state.scalar_type());
  Step a;
  a.features = features_of(options.features, options.nu, options.sum_norm, k_.size(-1));
  a.attn_norm = attn_norm_of(options.attn_norm);
  check_step(q_, k_, v_, beta_, state, normalizer, rows_, mask_, a.features.K);
  const Tensor q = rows_contiguous(q_, type), k = rows_contiguous(k_, type);
  const Tensor v = rows_contiguous(v_, type);
  a.N = v.size(0), a.H = v.size(1), a.V = v.size(2), a.source_rows = state.size(0);
  a.delta = beta_.has_value();
  a.dtype = storage(type);
  a.q = rows_of(q), a.k = rows_of(k), a.v = rows_of(v), a.y = rows_of(y);
  Tensor beta, mask, rows;
  if (beta_) {
    beta = beta_->to(wide);
    a.beta = rows_of(beta);
  }
  if (mask_) mask = mask_->contiguous();
  if (rows_) {
    rows = rows_->to(at::kLong).contiguous();
    a.rows = rows.const_data_ptr<Index>();
  }
  a.mask = static_cast<const bool*>(pointer(mask));
  a.state = pointer(state), a.new_state = mutable_pointer(new_state);
  if (a.attn_norm != AttnNorm::none) {
    TORCH_CHECK_VALUE(normalizer, "a step with attention normalisation needs the normalizer z");
    a.normalizer = normalizer->const_data_ptr();
    a.new_normalizer = mutable_pointer(new_normalizer);
  }
  Device::step(a, wide == at::kDouble, q);
}

inline at::ScalarType step_type(const Tensor& q, const Tensor& k, const Tensor& v) {
  return c10::promoteTypes(c10::promoteTypes(q.scalar_type(), k.scalar_type()), v.scalar_type());
}

template <class Device>
Three step(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& beta, const Tensor& state,
           const Optional& normalizer, const Optional& rows, const Optional& mask,
           const Options& options) {
  const Tensor y = at::empty(v.sizes(), v.options().dtype(step_type(q, k, v)));
  const Tensor old = state.contiguous();
  const Optional z = normalizer ? Optional(normalizer->contiguous()) : Optional();
  auto sizes = old.sizes().vec();
  sizes[0] = v.size(0);
  const Tensor fresh = at::empty(sizes, old.options());
  sizes.pop_back();
  const Tensor fresh_z = at::empty(z ? sizes : std::vector<Index>{0}, old.options());
  run_step<Device>(q, k, v, beta, old, z, rows, mask, options, y, fresh, fresh_z);
  return {y.to(v.scalar_type()), fresh, fresh_z};
}

template <class Device>
Tensor step_in_place(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& beta,
                     const Tensor& state, const Optional& normalizer, const Optional& rows,
                     const Optional& mask, const Options& options) {
  TORCH_CHECK_VALUE(state.is_contiguous() && (!normalizer || normalizer->is_contiguous()),
                    "a step in place needs a contiguous state");
  TORCH_CHECK_VALUE(!rows || rows->sizes() == at::IntArrayRef{state.size(0)},
                    "rows must have shape (", state.size(0), ",), one per row of the state, found ",
                    rows->sizes(), "; a beam that shrinks needs the functional step");
  const Tensor y = at::empty(v.sizes(), v.options().dtype(step_type(q, k, v)));
  const Tensor z = normalizer ? *normalizer : Tensor();
  if (rows && !Device::kGathersInPlace) {
    const Optional old_z = normalizer ? Optional(normalizer->clone()) : Optional();
    run_step<Device>(q, k, v, beta, state.clone(), old_z, rows, mask, options, y, state, z);
  } else {
    run_step<Device>(q, k, v, beta, state, normalizer, rows, mask, options, y, state, z);
  }
  return y.to(v.scalar_type());
}

// ---- the signatures of the schemas in fairseq_fwm/ops/library.py

#define FWM_STATES const Optional &state, const Optional &normalizer, const Optional &mask
#define FWM_OPTIONS const std::string &features, Index nu, bool sum_norm, const std::string &attn_norm
#define FWM_STEP const Optional &normalizer, const Optional &rows, const Optional &mask

template <class Device>
struct Ops {
  static Six sum_fwd(const Tensor& q, const Tensor& k, const Tensor& v, FWM_STATES, FWM_OPTIONS,
                     bool output_final_state, bool save) {
    return causal_fwd<Device>(q, k, v, std::nullopt, state, normalizer, mask,
                              {features, nu, sum_norm, attn_norm}, output_final_state, save);
  }
  static Six delta_fwd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                       FWM_STATES, FWM_OPTIONS, bool output_final_state, bool save) {
    return causal_fwd<Device>(q, k, v, beta, state, normalizer, mask,
                              {features, nu, sum_norm, attn_norm}, output_final_state, save);
  }
  static Six sum_bwd(const Tensor& dy, const Optional& dS, const Optional& dz, const Tensor& q,
                     const Tensor& k, const Tensor& v, FWM_STATES, const Optional& y,
                     const Tensor& residual, const Tensor& denominator, const Tensor& kappa,
                     FWM_OPTIONS, bool state_grad) {
    return causal_bwd<Device>(dy, dS, dz, q, k, v, std::nullopt, state, normalizer, mask, y, residual,
                              denominator, kappa, {features, nu, sum_norm, attn_norm}, state_grad);
  }
  static Six delta_bwd(const Tensor& dy, const Optional& dS, const Optional& dz, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& beta, FWM_STATES,
                       const Optional& y, const Tensor& residual, const Tensor& denominator,
                       const Tensor& kappa, FWM_OPTIONS, bool state_grad) {
    return causal_bwd<Device>(dy, dS, dz, q, k, v, beta, state, normalizer, mask, y, residual,
                              denominator, kappa, {features, nu, sum_norm, attn_norm}, state_grad);
  }
  static Three sum_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state,
                        FWM_STEP, FWM_OPTIONS) {
    return step<Device>(q, k, v, std::nullopt, state, normalizer, rows, mask,
                        {features, nu, sum_norm, attn_norm});
  }
  static Three delta_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                          const Tensor& state, FWM_STEP, FWM_OPTIONS) {
    return step<Device>(q, k, v, beta, state, normalizer, rows, mask,
                        {features, nu, sum_norm, attn_norm});
  }
  static Tensor sum_step_(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state,
                          FWM_STEP, FWM_OPTIONS) {
    return step_in_place<Device>(q, k, v, std::nullopt, state, normalizer, rows, mask,
                                 {features, nu, sum_norm, attn_norm});
  }
  static Tensor delta_step_(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                            const Tensor& state, FWM_STEP, FWM_OPTIONS) {
    return step_in_place<Device>(q, k, v, beta, state, normalizer, rows, mask,
                                 {features, nu, sum_norm, attn_norm});
  }

  static void add_to(torch::Library& library) {
    library.impl("causal_sum_fwd", &sum_fwd);
    library.impl("causal_sum_bwd", &sum_bwd);
    library.impl("causal_delta_fwd", &delta_fwd);
    library.impl("causal_delta_bwd", &delta_bwd);
    library.impl("causal_sum_step", &sum_step);
    library.impl("causal_sum_step_", &sum_step_);
    library.impl("causal_delta_step", &delta_step);
    library.impl("causal_delta_step_", &delta_step_);
  }
};

#undef FWM_STATES
#undef FWM_OPTIONS
#undef FWM_STEP

}  // namespace fwm
