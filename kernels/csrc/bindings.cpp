// The CPU side and the module: checks tensors, takes pointers and strides, spreads work over threads.
#include <Python.h>

#include <ATen/Parallel.h>

#include "cpu/table.h"
#include "ops.h"
#include "recurrent_ops.h"

#if defined(FWM_WITH_CUDA)
#include "cuda/launch.h"

namespace fwm {
void register_cuda_ops(torch::Library& library);  // cuda/bindings.cpp
}
#endif

namespace {

using at::Tensor;
using fwm::Index;
using fwm::is_fp64;
using fwm::like;
using fwm::Optional;

const fwm::Kernels& kernels() {
  static const fwm::Kernels* const chosen = fwm::choose_kernels();
  TORCH_CHECK(chosen, "FWM_CPU_ISA asks for instructions that this machine has not got; unset it, or "
              "set it to avx512, avx2 or baseline");
  return *chosen;
}

template <class Run>
void in_parallel(Index items, double flops_per_item, Run run) {
  // Handing work to a thread costs about what a quarter of a million operations do.
  const Index grain = std::max<Index>(1, static_cast<Index>(262144 / std::max(1.0, flops_per_item)));
  at::parallel_for(0, items, grain, run);
}

struct CPU {
  static constexpr bool kGathersInPlace = true;

  static void forward(fwm::Sequence& s) {
    fwm::Causal& a = s.a;
    a.quadratic = is_short(a) && !a.final_state && !a.state && !a.normalizer;
    const fwm::Kernels& on = kernels();
    // Value columns are independent: with fewer heads than threads, heads are cut between panels.
    const Index panel = 4 * on.vector_bytes / (s.fp64 ? 8 : 4);
    const Index panels = (a.V + panel - 1) / panel;
    const Index wanted = std::min(panels, (at::get_num_threads() + s.heads() - 1) / s.heads());
    const Index columns = a.quadratic ? panels * panel : (panels + wanted - 1) / wanted * panel;
    const Index groups = (panels * panel + columns - 1) / columns;
    in_parallel(s.heads() * groups, flops(s) / double(groups), [&](Index first, Index last) {
      on.causal_forward[s.fp64][s.delta()](a, columns, first, last);
    });
  }

  static void backward(fwm::Sequence& s) {
    fwm::Causal& a = s.a;
    a.quadratic = is_short(a) && !a.d_state && !a.state && !a.normalizer && !a.d_final_state &&
                  !a.d_final_normalizer;
    in_parallel(s.heads(), 3 * flops(s), [&](Index first, Index last) {
      kernels().causal_backward[s.fp64][s.delta()](a, first, last);
    });
  }

  static void step(const fwm::Step& a, bool fp64, const Tensor&) {
    for (Index i = 0; a.rows && i < a.N; i++) {
      TORCH_CHECK_INDEX(a.rows[i] >= 0 && a.rows[i] < a.source_rows, "rows: ", a.rows[i],
                        " is not a row of a state of ", a.source_rows);
    }
    const double flops = 6.0 * double(a.features.K) * double(a.V);
    const bool by_head = a.rows && a.state == a.new_state;
    in_parallel(by_head ? a.H : a.N * a.H, by_head ? flops * double(a.N) : flops,
                [&](Index first, Index last) { kernels().step[fp64](a, first, last); });
  }

  // One sequence per lane of a vector.
  static Index sequences_together(bool fp64) { return kernels().vector_bytes / (fp64 ? 8 : 4); }
  static void forward(const fwm::Recurrent& a, bool fp64, const Tensor&) {
    in_lanes(a, fp64, 14.0, kernels().recurrent_forward[fp64]);
  }
  static void backward(const fwm::Recurrent& a, bool fp64, const Tensor&) {
    in_lanes(a, fp64, 28.0, kernels().recurrent_backward[fp64]);
  }
  static void forward(const fwm::SelfReferential& a, bool fp64, const Tensor&) {
    in_lanes(a, fp64, 18.0, kernels().self_referential_forward[fp64]);
  }
  static void backward(const fwm::SelfReferential& a, bool fp64, const Tensor&) {
    in_lanes(a, fp64, 48.0, kernels().self_referential_backward[fp64]);
  }

 private:
  template <class Problem, class Kernel>
  static void in_lanes(const Problem& a, bool fp64, double flops_per_weight, Kernel kernel) {
    const Index lanes = sequences_together(fp64);
    const double flops = flops_per_weight * double(a.d * a.d * a.T * lanes);
    in_parallel((a.N + lanes - 1) / lanes * a.H, flops, [&](Index first, Index last) { kernel(a, first, last); });
  }
  // Whether the form that costs T^2 (K + V) beats the one that costs T K V.
  static bool is_short(const fwm::Causal& a) {
    const Index K = a.features.K;
    return a.T > 0 && a.V >= 32 && 2 * a.T * (K + a.V) <= 3 * K * a.V;
  }
  static double flops(const fwm::Sequence& s) {
    return (s.delta() ? 6.0 : 4.0) * double(s.a.T) * double(s.a.features.K) * double(s.a.V);
  }
};

// ---- feature maps by themselves

Tensor map_rows(const Tensor& x_, const Optional& dphi_, const std::string& name, Index nu,
                bool sum_norm) {
  const Tensor x = x_.contiguous();
  const bool fp64 = x.scalar_type() == at::kDouble;
  fwm::Map a;
  a.features = fwm::features_of(name, nu, sum_norm, x.size(-1));
  a.dtype = fwm::storage(x.scalar_type());
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
  is_fp64(u, "favor_exp takes");
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

// ---- the rescaled delta rule

using fwm::Three;

bool fill_rescaled(fwm::Rescaled& a, const Tensor& gram, const Tensor& v, const Tensor& beta) {
  a.T = v.size(2), a.V = v.size(3), a.count = v.size(0) * v.size(1);
  a.gram = gram.const_data_ptr(), a.v = v.const_data_ptr(), a.beta = beta.const_data_ptr();
  return is_fp64(v, "rescaled_fwd takes");
}
Three rescaled_fwd(const Tensor& gram_, const Tensor& v_, const Tensor& beta_) {
  const Tensor gram = gram_.contiguous(), v = v_.contiguous(), beta = beta_.contiguous();
  fwm::Rescaled a;
  const bool fp64 = fill_rescaled(a, gram, v, beta);
  const Tensor residual = like(v), history = like(gram);
  a.residual = residual.data_ptr(), a.history = history.data_ptr();
  in_parallel(a.count, double(a.T * a.T * a.V), [&](Index first, Index last) {
    kernels().rescaled_forward[fp64](a, first, last);
  });
  return {residual, history.select(2, a.T - 1).clone(), history};
}
Three rescaled_bwd(const Tensor& d_residual_, const Tensor& d_decay_, const Tensor& gram_,
                   const Tensor& v_, const Tensor& beta_, const Tensor& residual_,
                   const Tensor& history_) {
  const Tensor gram = gram_.contiguous(), v = v_.contiguous(), beta = beta_.contiguous();
  const Tensor residual = residual_.contiguous(), history = history_.contiguous();
  const Tensor d_residual = d_residual_.contiguous(), d_decay = d_decay_.contiguous();
  fwm::Rescaled a;
  const bool fp64 = fill_rescaled(a, gram, v, beta);
  a.residual = residual.data_ptr(), a.history = history.data_ptr();
  a.d_residual = d_residual.const_data_ptr(), a.d_decay = d_decay.const_data_ptr();
  const Tensor d_gram = like(gram), d_v = like(v), d_beta = like(beta);
  a.d_gram = d_gram.data_ptr(), a.d_v = d_v.data_ptr(), a.d_beta = d_beta.data_ptr();
  in_parallel(a.count, 2.0 * double(a.T * a.T * a.V), [&](Index first, Index last) {
    kernels().rescaled_backward[fp64](a, first, last);
  });
  return {d_gram, d_v, d_beta};
}

std::string cpu_isa() { return kernels().isa; }

std::string cuda_archs() {
#if defined(FWM_WITH_CUDA)
  return fwm::gpu::archs();
#else
  return "";
#endif
}

// Implementations only: the schemas are in fairseq_fwm/ops/library.py. Registered when the module is
// imported and not by a static object: a library that does not fit the schemas must raise an error,
// and an exception while a shared object loads would end the process. The libraries are kept only
// if all fit; those that an exception leaves behind take back what they registered.
void register_kernels() {
  static std::vector<torch::Library> kept;
  std::vector<torch::Library> made;
  made.reserve(3);
  const auto library = [&made](c10::DispatchKey key) -> torch::Library& {
    return made.emplace_back(torch::Library::IMPL, "fwm", key, __FILE__, __LINE__);
  };
  torch::Library& cpu = library(c10::DispatchKey::CPU);
  fwm::Ops<CPU>::add_to(cpu);
  fwm::add_recurrent_ops<CPU>(cpu);
  cpu.impl("feature_map", &feature_map);
  cpu.impl("feature_map_bwd", &feature_map_bwd);
  cpu.impl("favor_exp", &favor_exp);
  cpu.impl("favor_exp_bwd", &favor_exp_bwd);
  cpu.impl("rescaled_fwd", &rescaled_fwd);
  cpu.impl("rescaled_bwd", &rescaled_bwd);
#if defined(FWM_WITH_CUDA)
  fwm::register_cuda_ops(library(c10::DispatchKey::CUDA));
#endif
  torch::Library& any = library(c10::DispatchKey::CompositeExplicitAutograd);
  any.impl("cpu_isa", &cpu_isa);
  any.impl("cuda_archs", &cuda_archs);
  kept = std::move(made);
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
