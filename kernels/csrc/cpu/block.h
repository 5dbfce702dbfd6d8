// What all passes over a head share: blocks of time steps in scratch, feature maps, attention
// normalisation, states in panels.
#pragma once

#include "features.h"
#include "recurrence.h"

namespace fwm {
namespace FWM_ISA {

// Rows 0 .. count of a block are times first, first + step, ...; rows up to `padded` are zeros.
struct Span {
  Index first, step, count, padded;
  Index capacity;  // distance to the next block, in rows

  Index time(Index i) const { return first + step * i; }
};

// Blocks that cover T steps, forward or backward in time.
template <class Run>
FWM_INLINE void for_spans(Index T, Index capacity, int step, Run run) {
  for (Index done = 0; done < T; done += capacity) {
    const Index count = min(capacity, T - done);
    run(Span{step > 0 ? done : T - 1 - done, step, count, round_up(count, kStepUnit), capacity});
  }
}

template <class F>
FWM_INLINE void set_zero(F* p, Index count) {
  __builtin_memset(p, 0, count * sizeof(F));
}

template <class F>
constexpr DType kArithmetic = sizeof(F) == 8 ? DType::f64 : DType::f32;

// Rows into scratch, those of masked times as zeros.
template <class F>
void load_rows(const HeadRows& rows, const Span& span, Index width, Index padded, F* to,
               const bool* mask = nullptr) {
  for (Index i = 0; i < span.count; i++) {
    if (mask && !mask[span.time(i)]) {
      set_zero(to + i * padded, padded);
    } else {
      rows.load(to + i * padded, span.time(i), width, padded);
    }
  }
  set_zero(to + span.count * padded, (span.padded - span.count) * padded);
}
template <class F>
void store_rows(const HeadRows& rows, const Span& span, Index width, View<F> from) {
  for (Index i = 0; i < span.count; i++) rows.store(span.time(i), from.row(i), width);
}
template <class F>
void load_scalars(const HeadRows& rows, const Span& span, F* to, const bool* mask) {
  const F* from = static_cast<const F*>(rows.data) + rows.offset;
  for (Index i = 0; i < span.count; i++) {
    const Index t = span.time(i);
    to[i] = mask && !mask[t] ? F(0) : from[t * rows.stride];
  }
  for (Index i = span.count; i < span.padded; i++) to[i] = 0;
}

// Whether a block of rows can be used where it lies: nothing to convert and nothing to pad.
template <class F>
bool in_place(const HeadRows& rows, const Span& span, Index width) {
  return rows.dtype == kArithmetic<F> && width % W<F> == 0 && span.count == span.padded;
}
template <class F>
View<F> view_in_place(const HeadRows& rows, const Span& span) {
  F* data = static_cast<F*>(rows.data) + rows.offset + span.first * rows.stride;
  return {data, span.step * rows.stride};
}

// Rows to read: in place, or in `scratch`. Asks the memory for the rows of the next block.
template <class F>
View<F> read_rows(const HeadRows& rows, const Span& span, Index T, Index width, Index padded,
                  F* scratch, const bool* mask = nullptr, bool copy = false) {
  const Index next = span.time(span.capacity);
  rows.prefetch(next, span.step, min(span.capacity, span.step > 0 ? T - next : next + 1), width);
  if (!copy && !mask && in_place<F>(rows, span, width)) return view_in_place<F>(rows, span);
  load_rows(rows, span, width, padded, scratch, mask);
  return {scratch, padded};
}
// Rows to write: in place, or in `scratch`, from where finish_rows stores them.
template <class F>
View<F> write_rows(const HeadRows& rows, const Span& span, Index width, Index padded, F* scratch) {
  if (in_place<F>(rows, span, width)) return view_in_place<F>(rows, span);
  return {scratch, padded};
}
template <class F>
void finish_rows(const HeadRows& rows, const Span& span, Index width, View<F> from) {
  if (!in_place<F>(rows, span, width)) store_rows(rows, span, width, from);
}

template <class F>
void scale_rows(Index rows, Index width, const F* by, View<F> from, F* to) {
  for (Index i = 0; i < rows; i++) {
    const Vec<F> b = spread(by[i]);
    const F* row = from.row(i);
    for (Index j = 0; j < width; j += W<F>) store(to + i * width + j, b * load(row + j));
  }
}

// Queries or keys of a head: raw rows, and their features.
template <class F>
class FeatureStream {
 public:
  static Index scratch_bytes(const Features& f, Index capacity) {
    const Index raw = capacity * FeatureRows<F>::padded_d(f);
    const Index phi = (capacity + 1) * FeatureRows<F>::padded_K(f) + W<F>;
    return (raw + phi + capacity) * sizeof(F) + 4 * 64 +
           FeatureRows<F>::scratch_bytes(f, capacity);
  }

  FeatureStream(const Features& features, const HeadRows& rows, Index T, const bool* mask,
                Index capacity, Scratch& scratch)
      : T_(T),
        f_(features),
        rows_(rows),
        mask_(mask),
        map_(features, capacity, scratch),
        padded_d_(FeatureRows<F>::padded_d(f_)),
        padded_K_(FeatureRows<F>::padded_K(f_)) {
    phi_ = scratch.take<F>((capacity + 1) * padded_K_ + W<F>);
    raw_ = mapped() ? scratch.take<F>(capacity * padded_d_) : phi_;
    inverse_sum_ = scratch.take<F>(capacity);
  }

  // Features of a block of rows; in scratch if `copy`, so that they can be changed.
  View<F> load(const Span& span, bool copy) {
    const View<F> raw = read_rows(rows_, span, T_, f_.d, padded_d_, raw_, mask_, copy || mapped());
    if (!mapped()) return raw;
    map_.forward(span.count, raw_, phi_, inverse_sum_);
    clear_masked(span, phi_);
    set_zero(phi_ + span.count * padded_K_, (span.padded - span.count) * padded_K_);
    return {phi_, padded_K_};
  }

  // Gradient of the raw rows from `dphi`, which is overwritten and may be the result.
  View<F> backward(const Span& span, View<F> dphi, F* dx) {
    clear_masked(span, dphi.data);
    if (!mapped()) return dphi;
    map_.backward(span.count, raw_, phi_, inverse_sum_, dphi.data, dx);
    return {dx, padded_d_};
  }

  Index padded_d() const { return padded_d_; }
  bool mapped() const { return f_.map != FeatureMap::none || f_.sum_norm; }

 private:
  void clear_masked(const Span& span, F* rows) const {
    for (Index i = 0; mask_ && i < span.count; i++) {
      if (!mask_[span.time(i)]) set_zero(rows + i * padded_K_, padded_K_);
    }
  }

  Index T_;
  const Features& f_;
  HeadRows rows_;
  const bool* mask_;
  FeatureRows<F> map_;
  Index padded_d_, padded_K_;
  F *phi_, *raw_, *inverse_sum_;
};

// Attention normalisation as a change of what the rule sees (arXiv 2102.11174, Eqs. 26-28): with
// z_t = z_{t-1} + k_t, it gets q_t / (z_t . q_t + eps) and, of the kind `full`, k_t / kappa_t and
// beta_t kappa_t with kappa_t = z_{t-1} . k_t + eps.
template <class F>
class Normalization {
 public:
  static Index scratch_bytes(const Causal& a) {
    return (4 * FeatureRows<F>::padded_K(a.features) + 2 * a.T) * sizeof(F) + 6 * 64;
  }

  Normalization(const Causal& a, Index head, Scratch& scratch)
      : kind_(a.attn_norm), K_(FeatureRows<F>::padded_K(a.features)) {
    denominator_ = at(a.denominator, head * a.T);
    kappa_ = at(a.kappa, head * a.T);
    if (kind_ == AttnNorm::none) return;
    z_ = scratch.take<F>(K_);
    d_denominator_ = scratch.take<F>(a.T);
    d_kappa_ = scratch.take<F>(a.T);
  }

  bool on() const { return kind_ != AttnNorm::none; }
  bool full() const { return kind_ == AttnNorm::full; }

  // Start from z_0 (forward) or from the gradient of z_T (backward in time).
  void start(const void* z, Index head, Index K) {
    if (!on()) return;
    set_zero(z_, K_);
    if (z) load_same(z_, static_cast<const F*>(z) + head * K, K, K_);
  }
  void finish(void* z, Index head, Index K) const {
    if (on() && z) store_same(static_cast<F*>(z) + head * K, z_, K);
  }

  // Normalise the rows of a block; keep what the backward pass needs if `save`.
  void apply(const Span& span, View<F> queries, View<F> keys, F* beta, bool save) {
    for (Index i = 0; on() && i < span.count; i++) {
      F *q = queries.row(i), *k = keys.row(i);
      const Index t = span.time(i);
      if (full()) {
        const bool empty = is_zero(z_);
        const F kappa = empty ? F(1) : dot(z_, k, K_) + F(kAttnNormEps);
        add(z_, F(1), k);
        scale(k, 1 / kappa);
        beta[i] *= kappa;
        if (save) kappa_[t] = empty ? F(-1) : kappa;
      } else {
        add(z_, F(1), k);
      }
      const F denominator = dot(z_, q, K_) + F(kAttnNormEps);
      scale(q, 1 / denominator);
      if (save) denominator_[t] = denominator;
    }
  }

  // The same from what was kept.
  void reapply(const Span& span, View<F> q, View<F> k, F* beta) const {
    for (Index i = 0; on() && i < span.count; i++) {
      const Index t = span.time(i);
      scale(q.row(i), 1 / denominator_[t]);
      if (!full()) continue;
      const F kappa = absolute(kappa_[t]);
      scale(k.row(i), 1 / kappa);
      beta[i] *= kappa;
    }
  }
  // Undo it, for rows that the feature map is differentiated at.
  void undo(const Span& span, View<F> q, View<F> k) const {
    for (Index i = 0; on() && i < span.count; i++) {
      const Index t = span.time(i);
      scale(q.row(i), denominator_[t]);
      if (full()) scale(k.row(i), absolute(kappa_[t]));
    }
  }

  // Gradients of the two divisors at time t, from scalars: dy . y, and (S_{t-1}^T k) . dv.
  void set_gradients(Index t, F dy_y, F retrieved_dv) {
    d_denominator_[t] = -dy_y / denominator_[t];
    d_kappa_[t] = full() && kappa_[t] > 0 ? retrieved_dv / kappa_[t] : 0;
  }
  F absolute_kappa(Index t) const { return full() ? absolute(kappa_[t]) : F(1); }

  // Backward in time: what the rule returned for its keys becomes the gradient of the keys, all but
  // the part that needs z_{t-1}. q, k: undone. z_ is the gradient of z.
  void reverse(const Span& span, View<F> q, View<F> k, View<F> dk) {
    for (Index i = 0; on() && i < span.count; i++) {
      const Index t = span.time(i);
      add(z_, d_denominator_[t], q.row(i));
      scale(dk.row(i), 1 / absolute_kappa(t));
      add(dk.row(i), F(1), z_);
      add(z_, d_kappa_[t], k.row(i));
    }
  }
  // Forward in time: the parts that need z. k: undone; `fresh` says that dk is still what the rule
  // returned. z_ is z.
  void ahead(const Span& span, View<F> k, View<F> dq, View<F> dk, bool fresh) {
    for (Index i = 0; on() && i < span.count; i++) {
      const Index t = span.time(i);
      if (full()) {
        if (fresh) scale(dk.row(i), 1 / absolute_kappa(t));
        add(dk.row(i), d_kappa_[t], z_);
      }
      add(z_, F(1), k.row(i));
      scale(dq.row(i), 1 / denominator_[t]);
      add(dq.row(i), d_denominator_[t], z_);
    }
  }

 private:
  static F* at(void* p, Index offset) { return p ? static_cast<F*>(p) + offset : nullptr; }
  static F absolute(F x) { return x < 0 ? -x : x; }
  void add(F* to, F factor, const F* from) const {
    for (Index j = 0; j < K_; j += W<F>) {
      store(to + j, load(to + j) + spread(factor) * load(from + j));
    }
  }
  void scale(F* row, F factor) const {
    for (Index j = 0; j < K_; j += W<F>) store(row + j, load(row + j) * spread(factor));
  }
  bool is_zero(const F* row) const {
    for (Index j = 0; j < K_; j++) {
      if (row[j] != 0) return false;
    }
    return true;
  }

  AttnNorm kind_;
  Index K_;
  F *denominator_, *kappa_;
  F *z_ = nullptr, *d_denominator_ = nullptr, *d_kappa_ = nullptr;
};

template <class F>
HeadRows residual_rows(const Causal& a, Index head) {
  return HeadRows(Rows{a.residual, 0, a.T * a.V, a.V}, 0, head, kArithmetic<F>);
}

// dy . y of a row, where attention normalisation asks for it.
template <class F>
F dy_dot_y(const HeadRows& y, Index t, Index V, Index Vp, const F* dy, F* row) {
  y.load(row, t, V, Vp);
  return dot(dy, row, Vp);
}

// From u = G^T k (in dv) and r: dbeta, dv = beta u and the updates beta r.
template <class F>
void finish_updates(const Causal& a, Index head, const Span& span, Normalization<F>& norm,
                    View<F> v, View<F> dy, const F* beta, View<F> r, View<F> dv, F* updates,
                    Index Vp, F* spare) {
  const Index n = head / a.H, h = head % a.H;
  const HeadRows y(a.y, n, h, a.dtype), dbeta(a.dbeta, n, h, kArithmetic<F>);
  F* dbetas = static_cast<F*>(dbeta.data) + dbeta.offset;
  for (Index i = 0; i < span.padded; i++) {
    F *u = dv.row(i), *update = updates + i * Vp;
    const F* rest = r.row(i);
    const Vec<F> b = spread(beta[i]);
    Vec<F> along{}, retrieved_dv{};
    for (Index j = 0; j < Vp; j += W<F>) {
      const Vec<F> g = load(u + j), residual = load(rest + j);
      along += g * residual;
      store(u + j, b * g);
      store(update + j, b * residual);
      if (norm.full()) retrieved_dv += (load(v.row(i) + j) - residual) * (b * g);
    }
    if (i >= span.count) continue;
    const Index t = span.time(i);
    dbetas[t * dbeta.stride] = total<F>(along) * norm.absolute_kappa(t);
    if (norm.on()) {
      norm.set_gradients(t, dy_dot_y(y, t, a.V, Vp, dy.row(i), spare), total<F>(retrieved_dv));
    }
  }
}

// A state (K, V) in panels along V, or, transposed, in panels along K. Columns [begin, end) only.
template <bool Delta, class F>
void load_state(const void* state, Index head, Index K, Index V, bool transposed, Index begin,
                Index end, F* panels) {
  const Index rows = transposed ? V : K, columns = transposed ? K : V;
  if (!state) return set_zero(panels + begin * rows, (end - begin) * rows);
  const F* S = static_cast<const F*>(state) + head * K * V;
  for_panels<F, Delta>(begin, end, [&](auto vectors, Index c) {
    constexpr Index width = decltype(vectors)::value * W<F>;
    for (Index i = 0; i < rows; i++) {
      for (Index j = 0; j < width; j++) {
        const Index column = c + j;
        panels[c * rows + i * width + j] =
            column >= columns ? F(0) : S[transposed ? column * V + i : i * V + column];
      }
    }
  });
}
template <bool Delta, class F>
void store_state(void* state, Index head, Index K, Index V, Index begin, Index end,
                 const F* panels) {
  if (!state) return;
  F* S = static_cast<F*>(state) + head * K * V;
  for_panels<F, Delta>(begin, end, [&](auto vectors, Index c) {
    constexpr Index width = decltype(vectors)::value * W<F>;
    for (Index i = 0; i < K; i++) {
      for (Index j = 0; j < width && c + j < V; j++) {
        S[i * V + c + j] = panels[c * K + i * width + j];
      }
    }
  });
}

}  // namespace FWM_ISA
}  // namespace fwm
