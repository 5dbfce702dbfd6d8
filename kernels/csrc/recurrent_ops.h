// The ops that depend on what they read, on any device: what is allocated, saved and returned.
//
// Device::forward(problem, fp64, tensor) and Device::backward(...) compute; what a forward pass keeps lies
// as Device::sequences_together(fp64) says.
#pragma once

#include <torch/library.h>

#include "ops.h"

namespace fwm {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Sequences (N, H, T, .), described to a kernel, and what keeps its pointers alive.
template <class Device, class Problem>
struct Sequences {
  Problem a;
  bool fp64;
  Tensor mask;

  Sequences(const Tensor& x, Index d, const Optional& mask_)
      : fp64(is_fp64(x, "recurrent updates take")), mask(mask_ ? mask_->contiguous() : Tensor()) {
    a.N = x.size(0), a.H = x.size(1), a.T = x.size(2), a.d = d;
    a.mask = static_cast<const bool*>(pointer(mask));
  }
  // (groups of sequences of a head, T, numbers, sequences in a group)
  Tensor kept(const Tensor& x, Index numbers) const {
    const Index together = Device::sequences_together(fp64);
    return at::empty({(a.N + together - 1) / together * a.H, a.T, numbers, together}, x.options());
  }
};

template <class Device>
Five recurrent_delta_fwd(const Tensor& x_, const Tensor& R_, const Tensor& S_, const Tensor& last_,
                         const Optional& mask) {
  const Tensor x = x_.contiguous(), R = R_.contiguous(), S = S_.contiguous(), last = last_.contiguous();
  const Index d = R.size(1);
  Sequences<Device, Recurrent> of(x, d, mask);
  Recurrent& a = of.a;
  const Tensor y = at::empty({a.N, a.H, a.T, d}, x.options()), feedback = like(y);
  const Tensor final_state = like(S), final_last = like(last), kept = of.kept(x, 3 * d + 1);
  a.x = x.const_data_ptr(), a.weights = R.const_data_ptr();
  a.state = S.const_data_ptr(), a.last = last.const_data_ptr();
  a.y = y.data_ptr(), a.final_state = final_state.data_ptr(), a.final_last = final_last.data_ptr();
  a.kept = kept.data_ptr(), a.feedback = feedback.data_ptr();
  Device::forward(a, of.fp64, x);
  return {y, final_state, final_last, kept, feedback};
}

template <class Device>
Four recurrent_delta_bwd(const Tensor& dy_, const Tensor& dS_, const Tensor& d_last_, const Tensor& R_,
                         const Optional& mask, const Tensor& S_, const Tensor& kept,
                         const Tensor& feedback) {
  const Tensor dy = dy_.contiguous(), dS = dS_.contiguous(), d_last = d_last_.contiguous();
  const Tensor R = R_.contiguous(), S = S_.contiguous();
  const Index d = R.size(1);
  Sequences<Device, Recurrent> of(dy, d, mask);
  Recurrent& a = of.a;
  const Tensor dx = at::empty({a.N, a.H, a.T, 3 * d + 1}, dy.options());
  const Tensor d_state = like(dS), d_first = like(d_last);
  a.weights = R.const_data_ptr(), a.final_state = S.data_ptr();
  a.kept = kept.data_ptr(), a.feedback = feedback.data_ptr();
  a.dy = dy.const_data_ptr(), a.d_final_state = dS.const_data_ptr();
  a.d_final_last = d_last.const_data_ptr();
  a.dx = dx.data_ptr(), a.d_state = d_state.data_ptr(), a.d_last = d_first.data_ptr();
  Device::backward(a, of.fp64, dy);
  return {dx, feedback.transpose(-1, -2).matmul(dx).sum(0), d_state, d_first};
}

template <class Device>
Three self_referential_fwd(const Tensor& x_, const Tensor& W_, const Optional& mask) {
  const Tensor x = x_.contiguous(), W = W_.contiguous();
  const Index d = x.size(3);
  Sequences<Device, SelfReferential> of(x, d, mask);
  SelfReferential& a = of.a;
  const Tensor y = like(x), final_weights = like(W), kept = of.kept(x, 5 * d + 8);
  a.x = x.const_data_ptr(), a.weights = W.const_data_ptr();
  a.y = y.data_ptr(), a.final_weights = final_weights.data_ptr(), a.kept = kept.data_ptr();
  Device::forward(a, of.fp64, x);
  return {y, final_weights, kept};
}

template <class Device>
std::tuple<Tensor, Tensor> self_referential_bwd(const Tensor& dy_, const Tensor& dW_, const Tensor& x_,
                                                const Optional& mask, const Tensor& W_,
                                                const Tensor& kept) {
  const Tensor dy = dy_.contiguous(), dW = dW_.contiguous(), x = x_.contiguous(), W = W_.contiguous();
  Sequences<Device, SelfReferential> of(dy, x.size(3), mask);
  SelfReferential& a = of.a;
  const Tensor dx = like(x), d_weights = like(W);
  a.x = x.const_data_ptr(), a.final_weights = W.data_ptr(), a.kept = kept.data_ptr();
  a.dy = dy.const_data_ptr(), a.d_final_weights = dW.const_data_ptr();
  a.dx = dx.data_ptr(), a.d_weights = d_weights.data_ptr();
  Device::backward(a, of.fp64, dy);
  return {dx, d_weights};
}

template <class Device>
void add_recurrent_ops(torch::Library& library) {
  library.impl("recurrent_delta_fwd", &recurrent_delta_fwd<Device>);
  library.impl("recurrent_delta_bwd", &recurrent_delta_bwd<Device>);
  library.impl("self_referential_fwd", &self_referential_fwd<Device>);
  library.impl("self_referential_bwd", &self_referential_bwd<Device>);
}

}  // namespace fwm
