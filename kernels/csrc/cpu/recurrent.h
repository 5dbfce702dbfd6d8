// Updates that depend on what they read, one time step after the other: the recurrent delta rule and
// the self-referential weight matrix. Matrices are in scratch, rows padded to whole vectors; what is
// padded stays zero.
#pragma once

#include "vec.h"

namespace fwm {
namespace FWM_ISA {

template <class F>
struct Square {
  F* data;
  Index rows, ld;

  FWM_INLINE F* row(Index i) const { return data + i * ld; }
  void load_from(const F* from, Index width) const {
    for (Index i = 0; i < rows; i++) {
      for (Index j = 0; j < width; j++) row(i)[j] = from[i * width + j];
      for (Index j = width; j < ld; j++) row(i)[j] = 0;
    }
  }
  void store_to(F* to, Index width) const {
    for (Index i = 0; i < rows; i++) {
      for (Index j = 0; j < width; j++) to[i * width + j] = row(i)[j];
    }
  }
};

constexpr int kPassVectors = 4;

// Columns in blocks of vectors: run(std::integral_constant<int, NV>, column).
template <class F, class Run>
FWM_INLINE void for_columns(Index ld, Run run) {
  Index c = 0;
  for (; c + kPassVectors * W<F> <= ld; c += kPassVectors * W<F>) {
    run(std::integral_constant<int, kPassVectors>{}, c);
  }
  for (; c < ld; c += W<F>) run(std::integral_constant<int, 1>{}, c);
}

// y = M^T x, or y += M^T x.
template <bool Add, class F>
void read_matrix(const Square<F>& m, const F* x, F* y) {
  for_columns<F>(m.ld, [&](auto vectors, Index c) {
    constexpr int NV = decltype(vectors)::value;
    Vec<F> sum[NV];
    FWM_EACH(j, NV) sum[j] = Add ? load(y + c + j * W<F>) : Vec<F>{};
    for (Index i = 0; i < m.rows; i++) {
      const Vec<F> a = spread(x[i]);
      FWM_EACH(j, NV) sum[j] += a * load(m.row(i) + c + j * W<F>);
    }
    FWM_EACH(j, NV) store(y + c + j * W<F>, sum[j]);
  });
}

// M += scale * k (x) u.
template <class F>
void write_matrix(const Square<F>& m, const F* k, const F* u, F scale = 1) {
  for_columns<F>(m.ld, [&](auto vectors, Index c) {
    constexpr int NV = decltype(vectors)::value;
    Vec<F> change[NV];
    FWM_EACH(j, NV) change[j] = spread(scale) * load(u + c + j * W<F>);
    for (Index i = 0; i < m.rows; i++) {
      const Vec<F> a = spread(k[i]);
      F* row = m.row(i) + c;
      FWM_EACH(j, NV) store(row + j * W<F>, load(row + j * W<F>) + a * change[j]);
    }
  });
}

// x_i += M_i . z.
template <class F>
void project_matrix(const Square<F>& m, const F* z, F* x) {
  constexpr int R = 4;
  Index i = 0;
  for (; i + R <= m.rows; i += R) {
    Vec<F> sum[R];
    FWM_EACH(r, R) sum[r] = Vec<F>{};
    for (Index c = 0; c < m.ld; c += W<F>) {
      const Vec<F> b = load(z + c);
      FWM_EACH(r, R) sum[r] += b * load(m.row(i + r) + c);
    }
    F found[R];
    totals<R>(sum, found);
    FWM_EACH(r, R) x[i + r] += found[r];
  }
  for (; i < m.rows; i++) x[i] += dot(m.row(i), z, m.ld);
}

template <class F>
F sigmoid(F x) {
  // exponential() takes no large arguments.
  const F e = exponential<F>(spread(x < 0 ? x : -x))[0];
  return x < 0 ? e / (1 + e) : 1 / (1 + e);
}
template <class F>
void softmax(const F* x, F* p, Index d) {
  F largest = x[0], sum = 0;
  for (Index i = 1; i < d; i++) largest = x[i] > largest ? x[i] : largest;
  for (Index i = 0; i < d; i += W<F>) {
    const Index n = min(Index(W<F>), d - i);
    store_part(p + i, exponential<F>(load_part(x + i, n) - spread(largest)), n);
  }
  for (Index i = 0; i < d; i++) sum += p[i];
  for (Index i = 0; i < d; i++) p[i] /= sum;
}
// From the gradient of p = softmax(x) to that of x.
template <class F>
void softmax_gradient(const F* p, const F* dp, F* dx, Index d) {
  F mean = 0;
  for (Index i = 0; i < d; i++) mean += p[i] * dp[i];
  for (Index i = 0; i < d; i++) dx[i] = p[i] * (dp[i] - mean);
}
// tanh(x) = (1 - e) / (1 + e) with e = exp(-2 |x|), and its series near zero, where that loses digits.
template <class F>
FWM_INLINE Vec<F> tangent(Vec<F> x) {
  const Vec<F> size = x < 0 ? -x : x, e = exponential<F>(F(-2) * size);
  const Vec<F> far = (F(1) - e) / (F(1) + e), z = x * x;
  constexpr F c[] = {F(6404582) / F(10854718875), F(-929569) / F(638512875), F(21844) / F(6081075),
                     F(-1382) / F(155925),        F(62) / F(2835),           F(-17) / F(315),
                     F(2) / F(15),                F(-1) / F(3),              F(1)};
  Vec<F> p{};
  for (F a : c) p = p * z + a;
  return size < F(0.1) ? x * p : x < 0 ? -far : far;
}

// ---- the recurrent delta rule

template <class F>
struct RecurrentScratch {
  RecurrentScratch(Index d, Scratch& scratch)
      : d(d), M(3 * d + 1), dp(round_up(d, W<F>)), Mp(round_up(M, W<F>)) {
    S = {scratch.take<F>(d * dp), d, dp};
    R = {scratch.take<F>(d * Mp), d, Mp};
    a = scratch.take<F>(Mp), s = scratch.take<F>(dp), y = scratch.take<F>(dp);
    retrieved = scratch.take<F>(dp), u = scratch.take<F>(dp), v = scratch.take<F>(dp);
  }
  static Index bytes(Index d) {
    const Index dp = round_up(d, W<F>), Mp = round_up(3 * d + 1, W<F>);
    return (d * dp + d * Mp + Mp + 5 * dp) * Index(sizeof(F)) + 8 * 64;
  }

  Index d, M, dp, Mp;
  Square<F> S, R;
  F *a, *s, *y, *retrieved, *u, *v;
};

// Sequences [first, last) of N * H.
template <class F>
void recurrent_forward(const Recurrent& p, Index first, Index last) {
  Scratch scratch(RecurrentScratch<F>::bytes(p.d));
  RecurrentScratch<F> w(p.d, scratch);
  const Index T = p.T, d = w.d, M = w.M, dp = w.dp;
  for (Index n = first; n < last; n++) {
    const F* x = static_cast<const F*>(p.x) + n * T * M;
    F *y = static_cast<F*>(p.y) + n * T * d, *kept = static_cast<F*>(p.activations) + n * T * M;
    F *residual = static_cast<F*>(p.residual) + n * T * d, *feedback = static_cast<F*>(p.feedback) + n * T * d;
    const bool* mask = p.mask ? p.mask + n / p.H * T : nullptr;
    w.R.load_from(static_cast<const F*>(p.weights) + n % p.H * d * M, M);
    w.S.load_from(static_cast<const F*>(p.state) + n * d * d, d);
    for (Index i = 0; i < dp; i++) {
      w.y[i] = i < d ? static_cast<const F*>(p.last)[n * d + i] : F(0);
      w.v[i] = w.u[i] = 0;
    }
    for (Index t = 0; t < T; t++) {
      F *act = kept + t * M, *q = act, *k = act + d, *v = act + 2 * d;
      for (Index i = 0; i < dp; i += W<F>) store(w.s + i, tangent<F>(load(w.y + i)));
      for (Index i = 0; i < d; i++) feedback[t * d + i] = w.s[i];
      if (mask && !mask[t]) {
        for (Index i = 0; i < M; i++) act[i] = 0;
        for (Index i = 0; i < d; i++) y[t * d + i] = residual[t * d + i] = 0;
        continue;
      }
      for (Index i = 0; i < w.Mp; i++) w.a[i] = i < M ? x[t * M + i] : F(0);
      read_matrix<true>(w.R, w.s, w.a);
      softmax(w.a, q, d);
      softmax(w.a + d, k, d);
      const F beta = act[3 * d] = sigmoid(w.a[3 * d]);
      read_matrix<false>(w.S, k, w.retrieved);
      for (Index i = 0; i < d; i++) {
        v[i] = w.a[2 * d + i];
        const F r = residual[t * d + i] = v[i] - w.retrieved[i];
        w.u[i] = beta * r;
      }
      write_matrix(w.S, k, w.u);
      read_matrix<false>(w.S, q, w.y);
      for (Index i = 0; i < d; i++) y[t * d + i] = w.y[i];
    }
    w.S.store_to(static_cast<F*>(p.final_state) + n * d * d, d);
    for (Index i = 0; i < d; i++) static_cast<F*>(p.final_last)[n * d + i] = w.y[i];
  }
}

// G is the gradient of S; the carry is that of the last output.
template <class F>
void recurrent_backward(const Recurrent& p, Index first, Index last) {
  const Index T = p.T, d = p.d;
  const Index dp = round_up(d, W<F>), Mp = round_up(3 * d + 1, W<F>);
  Scratch scratch(RecurrentScratch<F>::bytes(d) + (d * dp + 2 * Mp + 6 * dp) * Index(sizeof(F)) + 10 * 64);
  RecurrentScratch<F> w(d, scratch);
  const Index M = w.M;
  const Square<F> G{scratch.take<F>(d * dp), d, dp};
  F *carry = scratch.take<F>(dp), *g = scratch.take<F>(dp), *dq = scratch.take<F>(dp);
  F *dk = scratch.take<F>(dp), *du = scratch.take<F>(dp), *erased = scratch.take<F>(dp);
  F* da = scratch.take<F>(Mp);
  for (Index n = first; n < last; n++) {
    const F* kept = static_cast<const F*>(p.activations) + n * T * M;
    const F* residual = static_cast<const F*>(p.residual) + n * T * d;
    const F* feedback = static_cast<const F*>(p.feedback) + n * T * d;
    const F* dy = static_cast<const F*>(p.dy) + n * T * d;
    F* dx = static_cast<F*>(p.dx) + n * T * M;
    const bool* mask = p.mask ? p.mask + n / p.H * T : nullptr;
    w.R.load_from(static_cast<const F*>(p.weights) + n % p.H * d * M, M);
    w.S.load_from(static_cast<const F*>(p.final_state) + n * d * d, d);
    G.load_from(static_cast<const F*>(p.d_final_state) + n * d * d, d);
    for (Index i = 0; i < dp; i++) {
      carry[i] = i < d ? static_cast<const F*>(p.d_final_last)[n * d + i] : F(0);
      g[i] = w.u[i] = erased[i] = 0;
    }
    for (Index i = 0; i < Mp; i++) da[i] = 0;
    for (Index t = T - 1; t >= 0; t--) {
      const F *act = kept + t * M, *q = act, *k = act + d, *r = residual + t * d, *s = feedback + t * d;
      if (mask && !mask[t]) {
        for (Index i = 0; i < M; i++) dx[t * M + i] = 0;
        continue;
      }
      const F beta = act[3 * d];
      for (Index i = 0; i < d; i++) {
        g[i] = dy[t * d + i] + carry[i];
        w.u[i] = beta * r[i];
        dq[i] = dk[i] = carry[i] = 0;
      }
      project_matrix(w.S, g, dq);
      write_matrix(G, q, g);
      read_matrix<false>(G, k, du);
      project_matrix(G, w.u, dk);
      F d_beta = 0;
      for (Index i = 0; i < d; i++) {
        d_beta += du[i] * r[i];
        da[2 * d + i] = beta * du[i];
        erased[i] = -beta * du[i];
      }
      write_matrix(w.S, k, w.u, F(-1));
      project_matrix(w.S, erased, dk);
      write_matrix(G, k, erased);
      softmax_gradient(q, dq, da, d);
      softmax_gradient(k, dk, da + d, d);
      da[3 * d] = d_beta * beta * (1 - beta);
      for (Index i = 0; i < M; i++) dx[t * M + i] = da[i];
      project_matrix(w.R, da, carry);
      for (Index i = 0; i < d; i++) carry[i] *= 1 - s[i] * s[i];
    }
    G.store_to(static_cast<F*>(p.d_state) + n * d * d, d);
    for (Index i = 0; i < d; i++) static_cast<F*>(p.d_last)[n * d + i] = carry[i];
  }
}

// ---- the self-referential weight matrix

// Each of the four parts of a row times its own number.
template <class F>
FWM_INLINE void scale_parts(const F* beta, const F* x, F* y, Index d) {
  for (Index part = 0; part < 4; part++) {
    const Index begin = part * d, end = part < 3 ? begin + d : begin + 4;
    for (Index i = begin; i < end; i++) y[i] = beta[part] * x[i];
  }
}

template <class F>
void self_referential_forward(const SelfReferential& p, Index first, Index last) {
  const Index T = p.T, d = p.d, M = 3 * d + 4, kept = 2 * d + 4;
  const Index Mp = round_up(M, W<F>);
  Scratch scratch((d * Mp + 3 * Mp + d) * Index(sizeof(F)) + 6 * 64);
  const Square<F> matrix{scratch.take<F>(d * Mp), d, Mp};
  F *a = scratch.take<F>(Mp), *change = scratch.take<F>(Mp), *u = scratch.take<F>(Mp);
  F* apart = scratch.take<F>(d);
  for (Index n = first; n < last; n++) {
    const F* x = static_cast<const F*>(p.x) + n * T * d;
    F *y = static_cast<F*>(p.y) + n * T * d, *activations = static_cast<F*>(p.activations) + n * T * kept;
    F* difference = static_cast<F*>(p.difference) + n * T * M;
    const bool* mask = p.mask ? p.mask + n / p.H * T : nullptr;
    matrix.load_from(static_cast<const F*>(p.weights) + n * d * M, M);
    for (Index i = 0; i < Mp; i++) u[i] = 0;
    for (Index t = 0; t < T; t++) {
      F *q = activations + t * kept, *k = q + d, *beta = k + d;
      if (mask && !mask[t]) {
        for (Index i = 0; i < d; i++) y[t * d + i] = 0;
        for (Index i = 0; i < kept; i++) q[i] = 0;
        for (Index i = 0; i < M; i++) difference[t * M + i] = 0;
        continue;
      }
      read_matrix<false>(matrix, x + t * d, a);
      for (Index i = 0; i < d; i++) y[t * d + i] = a[i];
      softmax(a + d, q, d);
      softmax(a + 2 * d, k, d);
      for (Index i = 0; i < 4; i++) beta[i] = sigmoid(a[3 * d + i]);
      for (Index i = 0; i < d; i++) apart[i] = q[i] - k[i];
      read_matrix<false>(matrix, apart, change);
      for (Index i = 0; i < M; i++) difference[t * M + i] = change[i];
      scale_parts(beta, change, u, d);
      write_matrix(matrix, k, u);
    }
    matrix.store_to(static_cast<F*>(p.final_weights) + n * d * M, M);
  }
}

template <class F>
void self_referential_backward(const SelfReferential& p, Index first, Index last) {
  const Index T = p.T, d = p.d, M = 3 * d + 4, kept = 2 * d + 4;
  const Index Mp = round_up(M, W<F>);
  Scratch scratch((2 * d * Mp + 4 * Mp + 4 * d) * Index(sizeof(F)) + 12 * 64);
  const Square<F> matrix{scratch.take<F>(d * Mp), d, Mp}, G{scratch.take<F>(d * Mp), d, Mp};
  F *u = scratch.take<F>(Mp), *du = scratch.take<F>(Mp), *d_change = scratch.take<F>(Mp);
  F *da = scratch.take<F>(Mp), *apart = scratch.take<F>(d), *dk = scratch.take<F>(d);
  F *d_apart = scratch.take<F>(d), *dq = scratch.take<F>(d);
  for (Index n = first; n < last; n++) {
    const F *x = static_cast<const F*>(p.x) + n * T * d, *dy = static_cast<const F*>(p.dy) + n * T * d;
    const F* activations = static_cast<const F*>(p.activations) + n * T * kept;
    const F* difference = static_cast<const F*>(p.difference) + n * T * M;
    F* dx = static_cast<F*>(p.dx) + n * T * d;
    const bool* mask = p.mask ? p.mask + n / p.H * T : nullptr;
    matrix.load_from(static_cast<const F*>(p.final_weights) + n * d * M, M);
    G.load_from(static_cast<const F*>(p.d_final_weights) + n * d * M, M);
    for (Index i = 0; i < Mp; i++) u[i] = d_change[i] = da[i] = 0;
    for (Index t = T - 1; t >= 0; t--) {
      const F *q = activations + t * kept, *k = q + d, *beta = k + d, *change = difference + t * M;
      F* gradient = dx + t * d;
      for (Index i = 0; i < d; i++) gradient[i] = 0;
      if (mask && !mask[t]) continue;
      scale_parts(beta, change, u, d);
      write_matrix(matrix, k, u, F(-1));
      read_matrix<false>(G, k, du);
      for (Index i = 0; i < d; i++) dk[i] = d_apart[i] = 0, apart[i] = q[i] - k[i];
      project_matrix(G, u, dk);
      scale_parts(beta, du, d_change, d);
      project_matrix(matrix, d_change, d_apart);
      for (Index i = 0; i < d; i++) dk[i] -= d_apart[i], dq[i] = d_apart[i];
      for (Index i = 0; i < d; i++) da[i] = dy[t * d + i];
      softmax_gradient(q, dq, da + d, d);
      softmax_gradient(k, dk, da + 2 * d, d);
      for (Index part = 0; part < 4; part++) {
        const Index begin = part * d, end = part < 3 ? begin + d : begin + 4;
        F sum = 0;
        for (Index i = begin; i < end; i++) sum += du[i] * change[i];
        da[3 * d + part] = sum * beta[part] * (1 - beta[part]);
      }
      write_matrix(G, apart, d_change);
      project_matrix(matrix, da, gradient);
      write_matrix(G, x + t * d, da);
    }
    G.store_to(static_cast<F*>(p.d_weights) + n * d * M, M);
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
