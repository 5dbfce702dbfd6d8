// The delta rule whose memory is divided by max(1, its norm) after every step but the first, on inner
// products of keys: what is retrieved is a sum of what was written, r_s, which never needs the memory.
#pragma once

#include "gemm.h"
#include "rows.h"

namespace fwm {
namespace FWM_ISA {

template <class F>
FWM_INLINE void add_scaled(F* y, F a, const F* x, Index padded) {
  const Vec<F> scale = spread(a);
  for (Index i = 0; i < padded; i += W<F>) store(y + i, load(y + i) + scale * load(x + i));
}
// Sequences [first, last). history[t][s] is what is left of the write at s after step t.
template <class F>
void rescaled_forward(const Rescaled& a, Index first, Index last) {
  const Index T = a.T, V = a.V, Vp = round_up(V, W<F>);
  Scratch scratch((T * Vp + T + 2 * Vp) * Index(sizeof(F)) + 4 * 64);
  F *rows = scratch.take<F>(T * Vp), *weights = scratch.take<F>(T);
  F *retrieved = scratch.take<F>(Vp), *written = scratch.take<F>(Vp);
  for (Index n = first; n < last; n++) {
    const F *gram = static_cast<const F*>(a.gram) + n * T * T, *v = static_cast<const F*>(a.v) + n * T * V;
    const F* beta = static_cast<const F*>(a.beta) + n * T;
    F *residual = static_cast<F*>(a.residual) + n * T * V, *history = static_cast<F*>(a.history) + n * T * T;
    F norm2 = 0;
    for (Index t = 0; t < T; t++) {
      const F* before = history + (t - 1) * T;
      for (Index s = 0; s < t; s++) weights[s] = before[s] * gram[t * T + s] * beta[s];
      product<Into::set>(1, Vp, t, weights, 0, 1, rows, Vp, retrieved, Vp);
      F* r = rows + t * Vp;
      load_same(r, v + t * V, V, Vp);
      add_scaled(r, F(-1), retrieved, Vp);
      for (Index i = 0; i < Vp; i += W<F>) store(written + i, spread(beta[t]) * load(r + i));
      norm2 += 2 * dot(written, retrieved, Vp) + dot(written, written, Vp) * gram[t * T + t];
      F left = 1;
      if (t > 0 && norm2 > 1) left = 1 / F(__builtin_sqrt(norm2)), norm2 = 1;
      for (Index s = 0; s < t; s++) history[t * T + s] = left * before[s];
      history[t * T + t] = left;
      for (Index s = t + 1; s < T; s++) history[t * T + s] = 0;
      store_same(residual + t * V, r, V);
    }
  }
}

// From the gradients of the residuals and of the history's last row.
template <class F>
void rescaled_backward(const Rescaled& a, Index first, Index last) {
  const Index T = a.T, V = a.V, Vp = round_up(V, W<F>);
  Scratch scratch((2 * T * Vp + T + 3 * Vp) * Index(sizeof(F)) + 6 * 64);
  F *rows = scratch.take<F>(T * Vp), *d_written = scratch.take<F>(T * Vp), *d_left = scratch.take<F>(T);
  F *retrieved = scratch.take<F>(Vp), *d_retrieved = scratch.take<F>(Vp), *d_row = scratch.take<F>(Vp);
  for (Index n = first; n < last; n++) {
    const F *gram = static_cast<const F*>(a.gram) + n * T * T, *v = static_cast<const F*>(a.v) + n * T * V;
    const F* beta = static_cast<const F*>(a.beta) + n * T;
    const F* history = static_cast<const F*>(a.history) + n * T * T;
    const F* d_residual = static_cast<const F*>(a.d_residual) + n * T * V;
    F *d_gram = static_cast<F*>(a.d_gram) + n * T * T, *d_v = static_cast<F*>(a.d_v) + n * T * V;
    F* d_beta = static_cast<F*>(a.d_beta) + n * T;
    const F* residual = static_cast<const F*>(a.residual) + n * T * V;
    for (Index t = 0; t < T; t++) load_same(rows + t * Vp, residual + t * V, V, Vp);
    for (Index i = 0; i < T * Vp; i++) d_written[i] = 0;
    for (Index s = 0; s < T; s++) d_left[s] = static_cast<const F*>(a.d_decay)[n * T + s];
    F d_norm2 = 0;
    for (Index t = T - 1; t >= 0; t--) {
      const F *before = history + (t - 1) * T, *r = rows + t * Vp;
      const F left = history[t * T + t], b = beta[t], length2 = gram[t * T + t];
      load_same(retrieved, v + t * V, V, Vp);
      add_scaled(retrieved, F(-1), r, Vp);
      F d = d_left[t];
      for (Index s = 0; s < t; s++) d += d_left[s] * before[s], d_left[s] *= left;
      // Where the norm was cut to one it does not depend on what was before.
      if (t > 0 && left < 1) d_norm2 = F(-0.5) * d * left * left * left;
      F* du = d_written + t * Vp;
      add_scaled(du, 2 * d_norm2, retrieved, Vp);
      add_scaled(du, 2 * d_norm2 * length2 * b, r, Vp);
      load_same(d_row, d_residual + t * V, V, Vp);
      add_scaled(d_row, b, du, Vp);
      const F written2 = b * b * dot(r, r, Vp);
      d_beta[t] = dot(du, r, Vp);
      for (Index i = 0; i < Vp; i += W<F>) {
        store(d_retrieved + i, spread(2 * d_norm2 * b) * load(r + i) - load(d_row + i));
      }
      store_same(d_v + t * V, d_row, V);
      for (Index s = 0; s < t; s++) {
        const F weight = before[s] * gram[t * T + s];
        add_scaled(d_written + s * Vp, weight, d_retrieved, Vp);
        const F d_weight = beta[s] * dot(rows + s * Vp, d_retrieved, Vp);
        d_left[s] += d_weight * gram[t * T + s];
        d_gram[t * T + s] = d_weight * before[s];
      }
      d_gram[t * T + t] = d_norm2 * written2;
      for (Index s = t + 1; s < T; s++) d_gram[t * T + s] = 0;
    }
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
