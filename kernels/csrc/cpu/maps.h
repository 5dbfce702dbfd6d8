// Feature maps by themselves, for everyone who wants the features.
#pragma once

#include "features.h"

namespace fwm {
namespace FWM_ISA {

constexpr Index kMapRows = 8;

template <class F>
class MapBlock {
 public:
  static Index scratch_bytes(const Features& f) {
    const Index dp = FeatureRows<F>::padded_d(f), Kp = FeatureRows<F>::padded_K(f);
    return (kMapRows * (2 * dp + 2 * Kp + 1) + 2 * W<F>) * sizeof(F) + 8 * 64 +
           FeatureRows<F>::scratch_bytes(f, kMapRows);
  }
  MapBlock(const Features& f, Scratch& scratch)
      : rows(f, kMapRows, scratch), dp(FeatureRows<F>::padded_d(f)), Kp(FeatureRows<F>::padded_K(f)) {
    x = scratch.take<F>(kMapRows * dp);
    dx = scratch.take<F>(kMapRows * dp);
    phi = scratch.take<F>(kMapRows * Kp + W<F>);
    dphi = scratch.take<F>(kMapRows * Kp);
    inverse_sum = scratch.take<F>(kMapRows);
  }

  FeatureRows<F> rows;
  Index dp, Kp;
  F *x, *dx, *phi, *dphi, *inverse_sum;
};

// Rows [first, last): phi(x), or with dphi the gradient of x.
template <class F>
void map_rows(const Map& a, Index first, Index last) {
  const Index d = a.features.d, K = a.features.K;
  Scratch scratch(MapBlock<F>::scratch_bytes(a.features));
  MapBlock<F> block(a.features, scratch);
  for (Index i = first; i < last; i += kMapRows) {
    const Index count = min(kMapRows, last - i);
    for (Index j = 0; j < count; j++) {
      load_row(block.x + j * block.dp, a.x, (i + j) * d, a.dtype, d, block.dp);
    }
    block.rows.forward(count, block.x, block.phi, block.inverse_sum);
    for (Index j = 0; j < count; j++) {
      if (a.dphi) {
        load_row(block.dphi + j * block.Kp, a.dphi, (i + j) * K, a.dtype, K, block.Kp);
      } else {
        store_row(a.phi, (i + j) * K, a.dtype, block.phi + j * block.Kp, K);
      }
    }
    if (!a.dphi) continue;
    block.rows.backward(count, block.x, block.phi, block.inverse_sum, block.dphi, block.dx);
    for (Index j = 0; j < count; j++) {
      store_row(a.dx, (i + j) * d, a.dtype, block.dx + j * block.dp, d);
    }
  }
}

// FAVOR+: phi = scale * (exp((u, -u) - offset) + added); with dphi the gradients of u and offset.
template <class F>
void favor_rows(const Favor& a, Index first, Index last) {
  const Index m = a.m;
  const F scale = F(a.scale), added = F(a.added);
  const auto part = [m](Index j) { return min(Index(W<F>), m - j); };
  for (Index i = first; i < last; i++) {
    F* phi = static_cast<F*>(a.phi) + i * 2 * m;
    if (!a.dphi) {
      const F* u = static_cast<const F*>(a.u) + i * m;
      const Vec<F> offset = spread(static_cast<const F*>(a.offset)[i]);
      for (Index j = 0; j < m; j += W<F>) {
        const Index n = part(j);
        const Vec<F> x = n == W<F> ? load(u + j) : load_part(u + j, n);
        const Vec<F> up = spread(scale) * (exponential<F>(x - offset) + spread(added));
        const Vec<F> down = spread(scale) * (exponential<F>(-x - offset) + spread(added));
        store_part(phi + j, up, n);
        store_part(phi + m + j, down, n);
      }
      continue;
    }
    const F* g = static_cast<const F*>(a.dphi) + i * 2 * m;
    F* du = static_cast<F*>(a.du) + i * m;
    const Vec<F> shift = spread(scale * added);
    Vec<F> sum{};
    for (Index j = 0; j < m; j += W<F>) {
      const Index n = part(j);
      const Vec<F> lanes_up = load_part(g + j, n), lanes_down = load_part(g + m + j, n);
      const Vec<F> up = lanes_up * (load_part(phi + j, n) - shift);
      const Vec<F> down = lanes_down * (load_part(phi + m + j, n) - shift);
      store_part(du + j, up - down, n);
      sum -= up + down;  // lanes beyond n hold zeros: so does the gradient there
    }
    static_cast<F*>(a.d_offset)[i] = total<F>(sum);
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
