// Short sequences without a state: C x C products of a whole sequence, C = T padded. Where no state
// comes in or is wanted, this costs T^2 (K + V) instead of T K V.
#pragma once

#include "block.h"
#include "gemm.h"

namespace fwm {
namespace FWM_ISA {

constexpr int kTile = FWM_REGISTERS == 32 ? 16 : 8;  // >= every vector width

// out = the lower triangle (with or without the diagonal) of X Y^T, in tiles; the other half of the
// tiles on the diagonal is zero, tiles above it are not touched. YT is (K, C).
template <class F>
void lower_product(Index C, Index K, const F* X, Index ldx, const F* YT, F* out, bool diagonal) {
  for (Index column = 0; column < C; column += 2 * kTile) {
    const Index width = min(2 * kTile, C - column);
    product<Into::set>(C - column, width, K, X + column * ldx, ldx, 1, YT + column, C,
                       out + column * C + column, C);
  }
  for (Index i = 0; i < C; i++) {
    for (Index j = diagonal ? i + 1 : i; j < round_up(i + 1, kTile); j++) out[i * C + j] = 0;
  }
}

// out (C, N) = L B of a lower triangular L.
template <Into into, class F>
void multiply_lower(Index C, Index N, const F* L, const F* B, F* out) {
  for (Index m = 0; m < C; m += kTile) {
    product<into>(kTile, N, m + kTile, L + m * C, C, 1, B, N, out + m * N, N);
  }
}
// out (C, N) = L^T B.
template <Into into, class F>
void multiply_lower_transposed(Index C, Index N, const F* L, const F* B, F* out) {
  for (Index m = 0; m < C; m += kTile) {
    product<into>(kTile, N, C - m, L + m * C + m, 1, C, B + m * N, N, out + m * N, N);
  }
}

// L <- L + L^T of a strictly lower L.
template <class F>
void add_transposed(Index C, F* L) {
  for (Index i = 0; i < C; i++) {
    for (Index j = 0; j < i; j++) L[j * C + i] = L[i * C + j];
  }
}

// X <- (I + L)^{-1} X, or (I + L^T)^{-1} X, of a strictly lower L.
template <bool Transposed, class F>
void solve_unit_lower(Index C, Index N, const F* L, F* X) {
  for (Index tile = 0; tile < C; tile += kTile) {
    const Index m = Transposed ? C - kTile - tile : tile;
    const F* on = L + m * C + m;
    if (Transposed) {
      product<Into::subtract>(kTile, N, tile, on + kTile * C, 1, C, X + (m + kTile) * N, N,
                              X + m * N, N);
    } else {
      product<Into::subtract>(kTile, N, m, L + m * C, C, 1, X, N, X + m * N, N);
    }
    for (Index n = 0; n < N; n += W<F>) {
      Vec<F> x[kTile];
      FWM_EACH(i, kTile) x[i] = load(X + (m + i) * N + n);
      if constexpr (Transposed) {
        FWM_UNROLL for (int i = kTile - 1; i > 0; i--) {
          FWM_EACH(j, i) x[j] -= spread(on[i * C + j]) * x[i];
        }
      } else {
        FWM_EACH(j, kTile) {
          FWM_UNROLL for (int i = j + 1; i < kTile; i++) x[i] -= spread(on[i * C + j]) * x[j];
        }
      }
      FWM_EACH(i, kTile) store(X + (m + i) * N + n, x[i]);
    }
  }
}

template <class F>
void scale_columns(Index C, const F* by, F* L) {
  for (Index i = 0; i < C; i++) {
    for (Index j = 0; j <= i; j += W<F>) store(L + i * C + j, load(L + i * C + j) * load(by + j));
  }
}
template <class F>
Index quadratic_scratch_bytes(const Causal& a) {
  const Index C = round_up(a.T, kTile), Kp = FeatureRows<F>::padded_K(a.features);
  const Index Vp = round_up(a.V, W<F>);
  const Index floats = C * (3 * Kp + 6 * Vp + FeatureRows<F>::padded_d(a.features)) + 4 * C * C +
                       max(Kp, Vp) * C + 2 * C + Vp;
  return floats * sizeof(F) + 20 * 64 + 2 * FeatureStream<F>::scratch_bytes(a.features, C) +
         Normalization<F>::scratch_bytes(a);
}

template <class F, bool Delta>
void forward_quadratic(const Causal& a, Index head, Scratch& scratch) {
  const Index n = head / a.H, h = head % a.H, K = a.features.K, C = round_up(a.T, kTile);
  const Index Kp = FeatureRows<F>::padded_K(a.features), Vp = round_up(a.V, W<F>);
  const bool* mask = a.mask ? a.mask + n * a.T : nullptr;
  const Span all{0, 1, a.T, C, a.T};
  FeatureStream<F> queries(a.features, HeadRows(a.q, n, h, a.dtype), a.T, nullptr, C, scratch);
  FeatureStream<F> keys(a.features, HeadRows(a.k, n, h, a.dtype), a.T, mask, C, scratch);
  Normalization<F> norm(a, head, scratch);
  F* v = scratch.take<F>(C * Vp);
  F* y = scratch.take<F>(C * Vp);
  F* beta = scratch.take<F>(C);
  F* KT = scratch.take<F>(Kp * C);
  F* P = scratch.take<F>(C * C);

  const View<F> Q = queries.load(all, true), K_ = keys.load(all, true);
  load_rows(HeadRows(a.v, n, h, a.dtype), all, a.V, Vp, v, mask);
  if (Delta) load_scalars(HeadRows(a.beta, n, h, kArithmetic<F>), all, beta, mask);
  norm.start(nullptr, head, K);
  norm.apply(all, Q, K_, beta, a.denominator);

  transpose(C, Kp, K_.data, Kp, KT, C);
  lower_product(C, K, Q.data, Kp, KT, P, true);
  if constexpr (Delta) {
    F* A = scratch.take<F>(C * C);
    lower_product(C, K, K_.data, Kp, KT, A, false);
    scale_columns(C, beta, A);
    solve_unit_lower<false>(C, Vp, A, v);
    if (a.residual) {
      F* r = static_cast<F*>(a.residual) + head * a.T * a.V;
      for (Index t = 0; t < a.T; t++) store_same(r + t * a.V, v + t * Vp, a.V);
    }
    scale_rows(C, Vp, beta, View<F>{v, Vp}, v);
  }
  multiply_lower<Into::set>(C, Vp, P, v, y);
  store_rows(HeadRows(a.y, n, h, a.dtype), all, a.V, View<F>{y, Vp});
}

template <class F, bool Delta>
void backward_quadratic(const Causal& a, Index head, Scratch& scratch) {
  const Index n = head / a.H, h = head % a.H, K = a.features.K, V = a.V, C = round_up(a.T, kTile);
  const Index Kp = FeatureRows<F>::padded_K(a.features), Vp = round_up(V, W<F>);
  const bool* mask = a.mask ? a.mask + n * a.T : nullptr;
  const Span all{0, 1, a.T, C, a.T};
  FeatureStream<F> queries(a.features, HeadRows(a.q, n, h, a.dtype), a.T, nullptr, C, scratch);
  FeatureStream<F> keys(a.features, HeadRows(a.k, n, h, a.dtype), a.T, mask, C, scratch);
  Normalization<F> norm(a, head, scratch);
  F* v = scratch.take<F>(C * Vp);
  F* dy = scratch.take<F>(C * Vp);
  F* dv = scratch.take<F>(C * Vp);
  F* d = scratch.take<F>(C * Vp);
  F* beta = scratch.take<F>(C);
  F* transposed = scratch.take<F>(max(Kp, Vp) * C);
  F* P = scratch.take<F>(C * C);
  F* dP = scratch.take<F>(C * C);
  F* dq = scratch.take<F>(C * Kp);
  F* dk = scratch.take<F>(C * Kp);
  F* dx = scratch.take<F>(C * queries.padded_d());
  F* spare = scratch.take<F>(Vp);

  const View<F> Q = queries.load(all, true), K_ = keys.load(all, true);
  load_rows(HeadRows(a.dy, n, h, a.dtype), all, V, Vp, dy);
  if (!Delta || norm.full()) load_rows(HeadRows(a.v, n, h, a.dtype), all, V, Vp, v, mask);
  if (Delta) load_scalars(HeadRows(a.beta, n, h, kArithmetic<F>), all, beta, mask);
  norm.reapply(all, Q, K_, beta);

  transpose(C, Kp, K_.data, Kp, transposed, C);
  lower_product(C, K, Q.data, Kp, transposed, P, true);
  multiply_lower_transposed<Into::set>(C, Vp, P, dy, dv);
  if constexpr (Delta) {
    F* A = scratch.take<F>(C * C);
    load_rows(residual_rows<F>(a, head), all, V, Vp, d);
    lower_product(C, K, K_.data, Kp, transposed, A, false);
    for (Index i = 0; i < C; i++) {
      F* row = A + i * C;
      scale_rows(1, round_up(i + 1, kTile), beta + i, View<F>{row, C}, row);
    }
    solve_unit_lower<true>(C, Vp, A, dv);
    const View<F> in_d{d, Vp};  // residuals, then updates
    finish_updates(a, head, all, norm, View<F>{v, Vp}, View<F>{dy, Vp}, beta, in_d, View<F>{dv, Vp},
                   d, Vp, spare);
    transpose(C, Vp, d, Vp, transposed, C);
    lower_product(C, V, dv, Vp, transposed, A, false);
    set_zero(dk, C * Kp);
    add_transposed(C, A);
    product<Into::subtract>(C, Kp, C, A, C, 1, K_.data, Kp, dk, Kp);
  } else {
    const HeadRows y(a.y, n, h, a.dtype);
    for (Index t = 0; norm.on() && t < a.T; t++) {
      norm.set_gradients(t, dy_dot_y(y, t, V, Vp, dy + t * Vp, spare), 0);
    }
    set_zero(dk, C * Kp);
    transpose(C, Vp, v, Vp, transposed, C);
  }
  lower_product(C, V, dy, Vp, transposed, dP, true);
  multiply_lower<Into::set>(C, Kp, dP, K_.data, dq);
  multiply_lower_transposed<Into::add>(C, Kp, dP, Q.data, dk);
  store_rows(HeadRows(a.dv, n, h, a.dtype), all, V, View<F>{dv, Vp});

  const View<F> DQ{dq, Kp}, DK{dk, Kp};
  norm.undo(all, Q, K_);
  norm.start(nullptr, head, K);
  for (Index i = a.T - 1; i >= 0; i--) {
    norm.reverse(Span{i, 1, 1, 1, 1}, {Q.row(i), Kp}, {K_.row(i), Kp}, {DK.row(i), Kp});
  }
  norm.start(nullptr, head, K);
  norm.ahead(all, K_, DQ, DK, false);
  const Index d_raw = a.features.d;
  store_rows(HeadRows(a.dk, n, h, a.dtype), all, d_raw, keys.backward(all, DK, dx));
  store_rows(HeadRows(a.dq, n, h, a.dtype), all, d_raw, queries.backward(all, DQ, dx));
}

}  // namespace FWM_ISA
}  // namespace fwm
