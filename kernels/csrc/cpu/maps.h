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

// FAVOR+: phi = scale * (exp(min((u, -u) - offset, cap)) + added); with dphi the gradients of u and
// offset, from the exponentials in phi.
template <class F>
void favor_rows(const Favor& a, Index first, Index last) {
  const Index m = a.m;
  const Vec<F> scale = spread(F(a.scale)), added = spread(F(a.added));
  constexpr F largest = sizeof(F) == 4 ? F(88) : F(709);
  const Vec<F> cap = spread(a.cap < largest ? F(a.cap) : largest);
  const Vec<F> full = scale * exponential<F>(cap), shift = scale * added;
  for (Index i = first; i < last; i++) {
    F* phi = static_cast<F*>(a.phi) + i * 2 * m;
    Vec<F> sum{};
    for (Index j = 0; j < m; j += W<F>) {
      const Index n = min(Index(W<F>), m - j);
      const auto get = [n](const F* p) { return n == W<F> ? load(p) : load_part(p, n); };
      const auto put = [n](F* p, Vec<F> x) { n == W<F> ? store(p, x) : store_part(p, x, n); };
      if (!a.dphi) {
        const Vec<F> x = get(static_cast<const F*>(a.u) + i * m + j);
        const Vec<F> offset = spread(static_cast<const F*>(a.offset)[i]);
        const Vec<F> up = x - offset, down = -x - offset;
        put(phi + j, scale * (exponential<F>(up < cap ? up : cap) + added));
        put(phi + m + j, scale * (exponential<F>(down < cap ? down : cap) + added));
        continue;
      }
      const F* g = static_cast<const F*>(a.dphi) + i * 2 * m + j;
      const Vec<F> slope_up = get(phi + j) - shift, slope_down = get(phi + m + j) - shift;
      const Vec<F> up = get(g) * (slope_up < full ? slope_up : Vec<F>{});
      const Vec<F> down = get(g + m) * (slope_down < full ? slope_down : Vec<F>{});
      put(static_cast<F*>(a.du) + i * m + j, up - down);
      sum -= up + down;  // lanes beyond n are zero, as the gradients there
    }
    if (a.dphi) static_cast<F*>(a.d_offset)[i] = total<F>(sum);
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
