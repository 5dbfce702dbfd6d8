// The only file that knows ATen: checks tensors, takes pointers and strides, spreads work over threads.
#include <Python.h>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "cpu/table.h"

namespace {

using at::Tensor;
using fwm::Index;
using Optional = std::optional<Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

const fwm::Kernels& kernels() {
  static const fwm::Kernels* const chosen = fwm::choose_kernels();
  TORCH_CHECK(chosen, "FWM_CPU_ISA asks for instructions that this machine has not got; unset it, or "
              "set it to avx512, avx2 or baseline");
  return *chosen;
}

// ---- what tensors are

fwm::DType storage(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return fwm::DType::f32;
    case at::kDouble: return fwm::DType::f64;
    case at::kBFloat16: return fwm::DType::bf16;
    case at::kHalf: return fwm::DType::f16;
    default: TORCH_CHECK_TYPE(false, "fwm kernels take float64, float32, bfloat16 and float16, found ", type);
  }
}

at::ScalarType arithmetic(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

fwm::Features features_of(const std::string& map, Index nu, bool sum_norm, Index d) {
  fwm::Features f;
  f.nu = nu;
  f.sum_norm = sum_norm;
  f.d = f.K = d;
  if (map == "elu") {
    f.map = fwm::FeatureMap::elu;
  } else if (map == "dpfp") {
    TORCH_CHECK_VALUE(nu >= 1 && nu <= 2 * d - 1, "dpfp: nu must be between 1 and 2 * head_dim - 1 = ",
                      2 * d - 1, ", found ", nu);
    f.map = fwm::FeatureMap::dpfp;
    f.K = 2 * nu * d;
  } else {
    TORCH_CHECK_VALUE(map == "none", "the kernel knows the feature maps none, elu, dpfp, found ", map);
  }
  return f;
}

fwm::AttnNorm attn_norm_of(const std::string& kind) {
  if (kind == "output") return fwm::AttnNorm::output;
  if (kind == "full") return fwm::AttnNorm::full;
  TORCH_CHECK_VALUE(kind == "none", "attn_norm must be none, output or full, found ", kind);
  return fwm::AttnNorm::none;
}

// Rows contiguous and of the dtype given; other strides as they come.
Tensor rows_contiguous(const Tensor& x, at::ScalarType type) {
  const Tensor y = x.scalar_type() == type ? x : x.to(type);
  return y.size(-1) <= 1 || y.stride(-1) == 1 ? y : y.contiguous();
}

fwm::Rows rows_of(const Tensor& x) {  // (N, H, T, features), (N, H, T) or, without a time, (N, H, .)
  fwm::Rows rows;
  rows.data = x.data_ptr();
  rows.n = x.stride(0);
  rows.h = x.stride(1);
  rows.t = x.dim() > 2 ? x.stride(2) : 0;
  return rows;
}

Tensor dense(const Optional& x, at::ScalarType type) {
  return x && x->defined() ? x->to(type).contiguous() : Tensor();
}
const void* pointer(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }
void* mutable_pointer(const Tensor& x) { return x.defined() && x.numel() ? x.data_ptr() : nullptr; }

// Empty, with the last dimension innermost and the others in memory as in `like`: what comes as a
// view of fairseq's (T, N, C) goes back without a copy.
Tensor empty_in_order_of(const Tensor& like, at::IntArrayRef sizes, at::ScalarType type) {
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

template <class Run>
void in_parallel(Index items, double flops_per_item, Run run) {
  // Handing work to a thread costs about what a quarter of a million operations do.
  const Index grain = std::max<Index>(1, static_cast<Index>(262144 / std::max(1.0, flops_per_item)));
  at::parallel_for(0, items, grain, run);
}

// ---- sequences

struct Options {
  const std::string& features;
  Index nu;
  bool sum_norm;
  const std::string& attn_norm;
};

// A fwm::Causal and the tensors that keep its pointers alive.
struct Sequence {
  fwm::Causal a;
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

  // Whether the form that costs T^2 (K + V) beats the one that costs T K V.
  bool is_short() const {
    const Index K = a.features.K;
    return a.T > 0 && a.V >= 32 && 2 * a.T * (K + a.V) <= 3 * K * a.V;
  }
  Index heads() const { return a.N * a.H; }
  double flops() const {
    return (beta.defined() ? 6.0 : 4.0) * double(a.T) * double(a.features.K) * double(a.V);
  }
  Tensor empty(at::IntArrayRef sizes) const { return at::empty(sizes, q.options().dtype(wide)); }
  Tensor none() const { return empty({0}); }
};

Six causal_fwd(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& beta,
               const Optional& state, const Optional& normalizer, const Optional& mask,
               const Options& options, bool output_final_state, bool save) {
  Sequence s(q, k, v, beta, state, normalizer, mask, options);
  fwm::Causal& a = s.a;
  const Tensor y = empty_in_order_of(s.v, v.sizes(), s.type);
  const bool norm = a.attn_norm != fwm::AttnNorm::none, full = a.attn_norm == fwm::AttnNorm::full;
  const Index K = a.features.K;
  const Tensor S = output_final_state ? s.empty({a.N, a.H, K, a.V}) : s.none();
  const Tensor z = output_final_state && norm ? s.empty({a.N, a.H, K}) : s.none();
  const Tensor residual = save && beta ? s.empty({a.N, a.H, a.T, a.V}) : s.none();
  const Tensor denominator = save && norm ? s.empty({a.N, a.H, a.T}) : s.none();
  const Tensor kappa = save && full ? s.empty({a.N, a.H, a.T}) : s.none();
  a.y = rows_of(y);
  a.final_state = mutable_pointer(S), a.final_normalizer = mutable_pointer(z);
  a.residual = mutable_pointer(residual);
  a.denominator = mutable_pointer(denominator), a.kappa = mutable_pointer(kappa);
  a.quadratic = s.is_short() && !output_final_state && !a.state && !a.normalizer;
  if (a.V > 0 && s.heads() > 0) {
    const fwm::Kernels& on = kernels();
    // Value columns are independent: with fewer heads than threads, heads are cut between panels.
    const Index panel = 4 * on.vector_bytes / (s.fp64 ? 8 : 4);
    const Index panels = (a.V + panel - 1) / panel;
    const Index wanted = std::min(panels, (at::get_num_threads() + s.heads() - 1) / s.heads());
    const Index columns = a.quadratic ? panels * panel : (panels + wanted - 1) / wanted * panel;
    const Index groups = (panels * panel + columns - 1) / columns;
    in_parallel(s.heads() * groups, s.flops() / double(groups), [&](Index first, Index last) {
      on.causal_forward[s.fp64][beta.has_value()](a, columns, first, last);
    });
  }
  return {y.scalar_type() == v.scalar_type() ? y : y.to(v.scalar_type()), S, z, residual, denominator,
          kappa};
}

Six causal_bwd(const Tensor& dy_, const Optional& dS_, const Optional& dz_, const Tensor& q,
               const Tensor& k, const Tensor& v, const Optional& beta, const Optional& state,
               const Optional& normalizer, const Optional& mask, const Optional& y_,
               const Tensor& residual, const Tensor& denominator, const Tensor& kappa,
               const Options& options, bool state_grad) {
  Sequence s(q, k, v, beta, state, normalizer, mask, options);
  fwm::Causal& a = s.a;
  const bool norm = a.attn_norm != fwm::AttnNorm::none;
  const Tensor dy = rows_contiguous(dy_, s.type);
  const Tensor dq = empty_in_order_of(s.q, q.sizes(), s.type);
  const Tensor dk = empty_in_order_of(s.k, k.sizes(), s.type);
  const Tensor dv = empty_in_order_of(s.v, v.sizes(), s.type);
  const Tensor dbeta = beta ? empty_in_order_of(s.beta, beta->sizes(), s.wide) : s.none();
  const Index K = a.features.K;
  const Tensor d_state = state_grad ? s.empty({a.N, a.H, K, a.V}) : s.none();
  const Tensor d_normalizer = state_grad && norm ? s.empty({a.N, a.H, K}) : s.none();
  const Tensor dS = dense(dS_, s.wide), dz = dense(dz_, s.wide);
  Tensor y;
  if (norm) {
    TORCH_CHECK(y_, "the backward pass of attention normalisation needs the output");
    y = rows_contiguous(*y_, s.type);
    a.y = rows_of(y);
  }
  a.dy = rows_of(dy), a.dq = rows_of(dq), a.dk = rows_of(dk), a.dv = rows_of(dv);
  if (beta) a.dbeta = rows_of(dbeta);
  a.residual = mutable_pointer(residual);
  a.denominator = mutable_pointer(denominator), a.kappa = mutable_pointer(kappa);
  TORCH_CHECK((!beta || a.residual || !s.v.numel()) && (!norm || a.denominator || !s.v.numel()),
              "the backward pass needs what the forward pass keeps with save_for_backward");
  a.d_final_state = pointer(dS), a.d_final_normalizer = pointer(dz);
  a.d_state = mutable_pointer(d_state), a.d_normalizer = mutable_pointer(d_normalizer);
  a.quadratic = s.is_short() && !state_grad && !a.state && !a.normalizer && !a.d_final_state &&
                !a.d_final_normalizer;
  if (s.heads() > 0) {
    in_parallel(s.heads(), 3 * s.flops(), [&](Index first, Index last) {
      kernels().causal_backward[s.fp64][beta.has_value()](a, first, last);
    });
  }
  return {dq.to(q.scalar_type()), dk.to(k.scalar_type()), dv.to(v.scalar_type()),
          beta ? dbeta.to(beta->scalar_type()) : dbeta, d_state, d_normalizer};
}

#define FWM_STATES const Optional &state, const Optional &normalizer, const Optional &mask
#define FWM_OPTIONS const std::string &features, Index nu, bool sum_norm, const std::string &attn_norm

Six sum_fwd(const Tensor& q, const Tensor& k, const Tensor& v, FWM_STATES, FWM_OPTIONS,
            bool output_final_state, bool save) {
  return causal_fwd(q, k, v, std::nullopt, state, normalizer, mask, {features, nu, sum_norm, attn_norm},
                    output_final_state, save);
}
Six delta_fwd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta, FWM_STATES,
              FWM_OPTIONS, bool output_final_state, bool save) {
  return causal_fwd(q, k, v, beta, state, normalizer, mask, {features, nu, sum_norm, attn_norm},
                    output_final_state, save);
}
Six sum_bwd(const Tensor& dy, const Optional& dS, const Optional& dz, const Tensor& q, const Tensor& k,
            const Tensor& v, FWM_STATES, const Optional& y, const Tensor& residual,
            const Tensor& denominator, const Tensor& kappa, FWM_OPTIONS, bool state_grad) {
  return causal_bwd(dy, dS, dz, q, k, v, std::nullopt, state, normalizer, mask, y, residual,
                    denominator, kappa, {features, nu, sum_norm, attn_norm}, state_grad);
}
Six delta_bwd(const Tensor& dy, const Optional& dS, const Optional& dz, const Tensor& q,
              const Tensor& k, const Tensor& v, const Tensor& beta, FWM_STATES, const Optional& y,
              const Tensor& residual, const Tensor& denominator, const Tensor& kappa, FWM_OPTIONS,
              bool state_grad) {
  return causal_bwd(dy, dS, dz, q, k, v, beta, state, normalizer, mask, y, residual, denominator,
                    kappa, {features, nu, sum_norm, attn_norm}, state_grad);
}

// ---- steps

// Checked here and not in Python: a step takes a few microseconds.
void expect(const char* name, const Tensor& x, at::IntArrayRef wanted) {
  TORCH_CHECK_VALUE(x.sizes() == wanted,
                    "a step takes q, k (N, H, K), v (N, H, V), beta (N, H), state (N, H, K, V) and "
                    "write_mask (N,): ", name, " should be ", wanted, ", found ", x.sizes());
}

void check_step(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& beta,
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

void run_step(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Optional& beta_,
              const Tensor& state, const Optional& normalizer, const Optional& rows_,
              const Optional& mask_, const Options& options, const Tensor& y, const Tensor& new_state,
              const Tensor& new_normalizer) {
  const at::ScalarType type = y.scalar_type(), wide = arithmetic(type);
  const bool fp64 = wide == at::kDouble;
  TORCH_CHECK_TYPE(state.scalar_type() == wide, "the state of a step must be ", wide, ", found ",
                   state.scalar_type());
  fwm::Step a;
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
    const Index* row = rows.const_data_ptr<Index>();
    for (Index i = 0; i < a.N; i++) {
      TORCH_CHECK_INDEX(row[i] >= 0 && row[i] < a.source_rows, "rows: ", row[i],
                        " is not a row of a state of ", a.source_rows);
    }
    a.rows = row;
  }
  a.mask = static_cast<const bool*>(pointer(mask));
  a.state = pointer(state), a.new_state = mutable_pointer(new_state);
  if (a.attn_norm != fwm::AttnNorm::none) {
    TORCH_CHECK_VALUE(normalizer, "a step with attention normalisation needs the normalizer z");
    a.normalizer = normalizer->const_data_ptr();
    a.new_normalizer = mutable_pointer(new_normalizer);
  }
  const double flops = 6.0 * double(a.features.K) * double(a.V);
  const bool by_head = rows_ && a.state == a.new_state;
  in_parallel(by_head ? a.H : a.N * a.H, by_head ? flops * double(a.N) : flops,
              [&](Index first, Index last) { kernels().step[fp64](a, first, last); });
}

at::ScalarType step_type(const Tensor& q, const Tensor& k, const Tensor& v) {
  return c10::promoteTypes(c10::promoteTypes(q.scalar_type(), k.scalar_type()), v.scalar_type());
}

using Three = std::tuple<Tensor, Tensor, Tensor>;

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
  run_step(q, k, v, beta, old, z, rows, mask, options, y, fresh, fresh_z);
  return {y.to(v.scalar_type()), fresh, fresh_z};
}

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
  run_step(q, k, v, beta, state, normalizer, rows, mask, options, y, state, z);
  return y.to(v.scalar_type());
}

#define FWM_STEP const Optional &normalizer, const Optional &rows, const Optional &mask

Three sum_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state, FWM_STEP,
               FWM_OPTIONS) {
  return step(q, k, v, std::nullopt, state, normalizer, rows, mask, {features, nu, sum_norm, attn_norm});
}
Three delta_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                 const Tensor& state, FWM_STEP, FWM_OPTIONS) {
  return step(q, k, v, beta, state, normalizer, rows, mask, {features, nu, sum_norm, attn_norm});
}
Tensor sum_step_(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state, FWM_STEP,
                 FWM_OPTIONS) {
  return step_in_place(q, k, v, std::nullopt, state, normalizer, rows, mask,
                       {features, nu, sum_norm, attn_norm});
}
Tensor delta_step_(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                   const Tensor& state, FWM_STEP, FWM_OPTIONS) {
  return step_in_place(q, k, v, beta, state, normalizer, rows, mask,
                       {features, nu, sum_norm, attn_norm});
}

// ---- feature maps by themselves

Tensor map_rows(const Tensor& x_, const Optional& dphi_, const std::string& name, Index nu,
                bool sum_norm) {
  const Tensor x = x_.contiguous();
  const bool fp64 = x.scalar_type() == at::kDouble;
  fwm::Map a;
  a.features = features_of(name, nu, sum_norm, x.size(-1));
  a.dtype = storage(x.scalar_type());
  a.count = a.features.d ? x.numel() / a.features.d : 0;
  a.x = x.const_data_ptr();
  auto sizes = x.sizes().vec();
  if (!dphi_) sizes.back() = a.features.K;
  const Tensor out = at::empty(sizes, x.options());
  Tensor dphi;
  if (dphi_) {
    dphi = dphi_->to(x.scalar_type()).contiguous();
    a.dphi = dphi.const_data_ptr();
    a.dx = out.data_ptr();
  } else {
    a.phi = out.data_ptr();
  }
  in_parallel(a.count, 4.0 * double(a.features.K), [&](Index first, Index last) {
    kernels().map_rows[fp64](a, first, last);
  });
  return out;
}
Tensor feature_map(const Tensor& x, const std::string& name, Index nu, bool sum_norm) {
  return map_rows(x, std::nullopt, name, nu, sum_norm);
}
Tensor feature_map_bwd(const Tensor& dphi, const Tensor& x, const std::string& name, Index nu,
                       bool sum_norm) {
  return map_rows(x, dphi, name, nu, sum_norm);
}

void favor_rows(fwm::Favor& a, const Tensor& u, double scale, double added,
                double cap) {
  const bool fp64 = u.scalar_type() == at::kDouble;
  a.m = u.size(-1);
  a.count = a.m ? u.numel() / a.m : 0;
  a.scale = scale, a.added = added, a.cap = cap;
  in_parallel(a.count, 40.0 * double(a.m), [&](Index first, Index last) {
    kernels().favor_rows[fp64](a, first, last);
  });
}
Tensor favor_exp(const Tensor& u_, const Tensor& offset_, double scale, double added, double cap) {
  const Tensor u = u_.contiguous(), offset = offset_.contiguous();
  TORCH_CHECK_TYPE(u.scalar_type() == at::kFloat || u.scalar_type() == at::kDouble,
                   "favor_exp takes float32 and float64, found ", u.scalar_type());
  auto sizes = u.sizes().vec();
  sizes.back() *= 2;
  const Tensor phi = at::empty(sizes, u.options());
  fwm::Favor a;
  a.u = u.const_data_ptr(), a.offset = offset.const_data_ptr(), a.phi = phi.data_ptr();
  favor_rows(a, u, scale, added, cap);
  return phi;
}
std::tuple<Tensor, Tensor> favor_exp_bwd(const Tensor& dphi_, const Tensor& phi_, double scale,
                                         double added, double cap) {
  const Tensor dphi = dphi_.contiguous(), phi = phi_.contiguous();
  auto sizes = phi.sizes().vec();
  sizes.back() /= 2;
  const Tensor du = at::empty(sizes, phi.options());
  sizes.back() = 1;
  const Tensor d_offset = at::empty(sizes, phi.options());
  fwm::Favor a;
  a.dphi = dphi.const_data_ptr(), a.phi = phi.data_ptr();
  a.du = du.data_ptr(), a.d_offset = d_offset.data_ptr();
  favor_rows(a, du, scale, added, cap);
  return {du, d_offset};
}

std::string cpu_isa() { return kernels().isa; }

// Implementations only: the schemas are in fairseq_fwm/ops/library.py. Registered when the module is
// imported and not by a static object: a library that does not fit the schemas must raise an error,
// and an exception while a shared object loads would end the process.
void register_kernels() {
  static torch::Library cpu(torch::Library::IMPL, "fwm", c10::DispatchKey::CPU, __FILE__, __LINE__);
  cpu.impl("causal_sum_fwd", &sum_fwd);
  cpu.impl("causal_sum_bwd", &sum_bwd);
  cpu.impl("causal_delta_fwd", &delta_fwd);
  cpu.impl("causal_delta_bwd", &delta_bwd);
  cpu.impl("causal_sum_step", &sum_step);
  cpu.impl("causal_sum_step_", &sum_step_);
  cpu.impl("causal_delta_step", &delta_step);
  cpu.impl("causal_delta_step_", &delta_step_);
  cpu.impl("feature_map", &feature_map);
  cpu.impl("feature_map_bwd", &feature_map_bwd);
  cpu.impl("favor_exp", &favor_exp);
  cpu.impl("favor_exp_bwd", &favor_exp_bwd);
  static torch::Library any(torch::Library::IMPL, "fwm", c10::DispatchKey::CompositeExplicitAutograd,
                            __FILE__, __LINE__);
  any.impl("cpu_isa", &cpu_isa);
}

}  // namespace

// The module itself is empty: importing it registers the kernels.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                                   nullptr, nullptr, nullptr, nullptr};
  try {
    kernels();
    register_kernels();
  } catch (const c10::Error& error) {
    PyErr_SetString(PyExc_ImportError, error.what_without_backtrace());
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
    return nullptr;
  }
  return PyModule_Create(&definition);
}
