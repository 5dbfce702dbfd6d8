// causal_sum and causal_delta over the heads [first, last): forward and backward.
#pragma once

#include "quadratic.h"

namespace fwm {
namespace FWM_ISA {

// Time steps that are brought into scratch at a time: what fits L1 beside the state.
template <class F>
Index block_rows(const Causal& a) {
  const Index row = 2 * FeatureRows<F>::padded_K(a.features) + 3 * round_up(a.V, W<F>);
  return min(64, max(8, Index(16384 / sizeof(F)) / row / 8 * 8));
}

template <class F>
Index forward_scratch_bytes(const Causal& a) {
  const Index rows = block_rows<F>(a), Vp = round_up(a.V, W<F>);
  return (rows * (3 * Vp + 1) + a.features.K * Vp) * sizeof(F) + 8 * 64 +
         2 * FeatureStream<F>::scratch_bytes(a.features, rows) + Normalization<F>::scratch_bytes(a);
}

// Columns [begin, end) of the values (padded) of one head.
template <class F, bool Delta>
void forward_recurrent(const Causal& a, Index head, Index begin, Index end, Scratch& scratch) {
  const Index n = head / a.H, h = head % a.H, K = a.features.K;
  const Index Kp = FeatureRows<F>::padded_K(a.features), capacity = block_rows<F>(a);
  const Index padded = end - begin, width = min(end, a.V) - begin;
  const bool* mask = a.mask ? a.mask + n * a.T : nullptr;
  FeatureStream<F> q(a, HeadRows(a.q, n, h, a.dtype), nullptr, capacity, scratch);
  FeatureStream<F> k(a, HeadRows(a.k, n, h, a.dtype), mask, capacity, scratch);
  Normalization<F> norm(a, head, scratch);
  F* v = scratch.take<F>(capacity * padded);
  F* y = scratch.take<F>(capacity * padded);
  F* r = scratch.take<F>(capacity * padded);
  F* beta = scratch.take<F>(capacity);
  F* panels = scratch.take<F>(K * padded) - begin * K;
  HeadRows values(a.v, n, h, a.dtype), outputs(a.y, n, h, a.dtype);
  HeadRows residuals = residual_rows<F>(a, head);
  values.offset += begin, outputs.offset += begin, residuals.offset += begin;

  load_state(a.state, head, K, a.V, false, begin, end, panels);
  norm.start(a.normalizer, head, K);
  for_spans(a.T, capacity, 1, [&](const Span& span) {
    q.load(span);
    k.load(span);
    load_rows(values, span, a.T, width, padded, v, mask);
    if (Delta) load_rows(HeadRows(a.beta, n, h, kArithmetic<F>), span, a.T, 1, 1, beta, mask);
    norm.apply(span, q.phi, k.phi, beta, begin == 0 && a.denominator);
    for_panels<F>(begin, end, [&](auto vectors, Index c) {
      constexpr int NV = decltype(vectors)::value;
      F *S = panels + c * K, *vc = v + c - begin, *yc = y + c - begin, *rc = r + c - begin;
      if constexpr (Delta) {
        delta_steps<F, NV>(span.padded, K, Kp, q.phi, k.phi, Kp, vc, beta, yc, rc, padded, S);
      } else {
        sum_steps<F, NV>(span.padded, K, q.phi, k.phi, Kp, vc, yc, padded, S);
      }
    });
    store_rows(outputs, span, width, padded, y);
    if (a.residual) store_rows(residuals, span, width, padded, r);
  });
  store_state(a.final_state, head, K, a.V, begin, end, panels);
  if (begin == 0) norm.finish(a.final_normalizer, head, K);
}

template <class F>
Index backward_scratch_bytes(const Causal& a) {
  const Index rows = block_rows<F>(a), Vp = round_up(a.V, W<F>), T = a.T;
  const Index Kp = FeatureRows<F>::padded_K(a.features), dp = FeatureRows<F>::padded_d(a.features);
  const Index kept = a.dtype == kArithmetic<F> ? 0 : T * (a.V + a.features.d);
  return (rows * (4 * Vp + 2 * Kp + 2 * dp + 1) + a.features.K * Vp + a.V * Kp + Vp + kept) *
             sizeof(F) + 20 * 64 + 2 * FeatureStream<F>::scratch_bytes(a.features, rows) +
         Normalization<F>::scratch_bytes(a);
}

// Two sweeps over a head: backward in time with the gradient G of the state, which gives dv, dbeta and
// the part of dk that reads G; then forward with the state again, for dq and the rest of dk. Nothing
// is kept from the forward pass but r (delta), and no update is ever taken back.
template <class F, bool Delta>
void backward_recurrent(const Causal& a, Index head, Scratch& scratch) {
  const Index n = head / a.H, h = head % a.H, K = a.features.K, V = a.V, T = a.T, d = a.features.d;
  const Index Kp = FeatureRows<F>::padded_K(a.features), Vp = round_up(V, W<F>);
  const Index capacity = block_rows<F>(a);
  const bool* mask = a.mask ? a.mask + n * T : nullptr;
  FeatureStream<F> q(a, HeadRows(a.q, n, h, a.dtype), nullptr, capacity, scratch);
  FeatureStream<F> k(a, HeadRows(a.k, n, h, a.dtype), mask, capacity, scratch);
  Normalization<F> norm(a, head, scratch);
  const Index dp = q.padded_d();
  F* v = scratch.take<F>(capacity * Vp);
  F* r = scratch.take<F>(capacity * Vp);  // residuals, then updates beta r
  F* dy = scratch.take<F>(capacity * Vp);
  F* dv = scratch.take<F>(capacity * Vp);
  F* beta = scratch.take<F>(capacity);
  F* dq = scratch.take<F>(capacity * Kp);
  F* dk = scratch.take<F>(capacity * Kp);
  F* dx = scratch.take<F>(capacity * dp);
  F* partial = scratch.take<F>(capacity * dp);
  F* spare = scratch.take<F>(Vp);
  F* by_key = scratch.take<F>(K * Vp);
  F* by_value = scratch.take<F>(V * Kp);
  const HeadRows values(a.v, n, h, a.dtype), outputs(a.y, n, h, a.dtype);
  const HeadRows dys(a.dy, n, h, a.dtype), betas(a.beta, n, h, kArithmetic<F>);
  const HeadRows residuals = residual_rows<F>(a, head);
  const HeadRows dq_out(a.dq, n, h, a.dtype), dk_out(a.dk, n, h, a.dtype);
  const HeadRows dv_out(a.dv, n, h, a.dtype);
  // What the first sweep leaves for the second one, in full precision.
  HeadRows dv_kept = dv_out, dk_kept = dk_out;
  if (a.dtype != kArithmetic<F>) {
    dv_kept = HeadRows(Rows{scratch.take<F>(T * V), 0, 0, V}, 0, 0, kArithmetic<F>);
    dk_kept = HeadRows(Rows{scratch.take<F>(T * d), 0, 0, d}, 0, 0, kArithmetic<F>);
  }

  load_state(a.d_final_state, head, K, V, false, 0, Vp, by_key);
  load_state(a.d_final_state, head, K, V, true, 0, Kp, by_value);
  norm.start(a.d_final_normalizer, head, K);
  for_spans(T, capacity, -1, [&](const Span& span) {
    q.load(span);
    k.load(span);
    load_rows(dys, span, T, V, Vp, dy);
    if (!Delta || norm.full()) load_rows(values, span, T, V, Vp, v, mask);
    if (Delta) {
      load_rows(residuals, span, T, V, Vp, r);
      load_rows(betas, span, T, 1, 1, beta, mask);
    }
    norm.reapply(span, q.phi, k.phi, beta);
    for_panels<F>(0, Vp, [&](auto vectors, Index c) {
      constexpr int NV = decltype(vectors)::value;
      F* G = by_key + c * K;
      if constexpr (Delta) {
        delta_reverse_steps<F, NV>(span.padded, K, Kp, q.phi, k.phi, Kp, dy + c, beta, dv + c, Vp, G);
      } else {
        sum_steps<F, NV>(span.padded, K, k.phi, q.phi, Kp, dy + c, dv + c, Vp, G);
      }
    });
    if constexpr (Delta) {
      finish_updates(a, head, span, norm, v, dy, beta, r, dv, Vp, spare);
    } else {
      for (Index i = 0; norm.on() && i < span.count; i++) {
        const Index t = span.time(i);
        norm.set_gradients(t, dy_dot_y(outputs, t, V, Vp, dy + i * Vp, spare), 0);
      }
    }
    for_panels<F>(0, Kp, [&](auto vectors, Index c) {
      constexpr int NV = decltype(vectors)::value;
      F* G = by_value + c * V;
      if constexpr (Delta) {
        delta_key_steps<F, NV>(span.padded, V, r, dy, dv, Vp, q.phi + c, k.phi + c, dk + c, Kp, G);
      } else {
        sum_steps<F, NV>(span.padded, V, v, dy, Vp, q.phi + c, dk + c, Kp, G);
      }
    });
    norm.undo(span, q.phi, k.phi);
    norm.reverse(span, q.phi, k.phi, dk);
    store_rows(Delta ? dv_kept : dv_out, span, V, Vp, dv);
    store_rows(Delta ? dk_kept : dk_out, span, d, dp, k.backward(span, dk, dx));
  });
  store_state(a.d_state, head, K, V, 0, Vp, by_key);
  norm.finish(a.d_normalizer, head, K);

  const bool queries = norm.on() || q.mapped();
  load_state(a.state, head, K, V, true, 0, Kp, by_value);
  norm.start(a.normalizer, head, K);
  for_spans(T, capacity, 1, [&](const Span& span) {
    if (queries) q.load(span);
    k.load(span);
    load_rows(dys, span, T, V, Vp, dy);
    if constexpr (Delta) {
      load_rows(residuals, span, T, V, Vp, r);
      load_rows(betas, span, T, 1, 1, beta, mask);
      load_rows(dv_kept, span, T, V, Vp, dv);
    } else {
      load_rows(values, span, T, V, Vp, v, mask);
    }
    norm.reapply(span, q.phi, k.phi, beta);
    if (Delta) scale_rows(span.padded, Vp, beta, r, r);
    for_panels<F>(0, Kp, [&](auto vectors, Index c) {
      constexpr int NV = decltype(vectors)::value;
      F* S = by_value + c * V;
      if constexpr (Delta) {
        delta_query_steps<F, NV>(span.padded, V, r, dy, dv, Vp, k.phi + c, dq + c, dk + c, Kp, S);
      } else {
        sum_steps<F, NV>(span.padded, V, dy, v, Vp, k.phi + c, dq + c, Kp, S);
      }
    });
    norm.undo(span, q.phi, k.phi);
    norm.ahead(span, k.phi, dq, Delta ? dk : nullptr, true);
    store_rows(dq_out, span, d, dp, q.backward(span, dq, dx));
    if constexpr (Delta) {
      const F* rest = k.backward(span, dk, dx);
      load_rows(dk_kept, span, T, d, dp, partial);
      for (Index i = 0; i < span.count * dp; i += W<F>) {
        store(partial + i, load(partial + i) + load(rest + i));
      }
      store_rows(dk_out, span, d, dp, partial);
      if (a.dtype != kArithmetic<F>) store_rows(dv_out, span, V, Vp, dv);
    }
  });
}

// Work items: heads, each cut into groups of `columns` values where there are few heads.
template <class F, bool Delta>
void causal_forward(const Causal& a, Index columns, Index first, Index last) {
  const bool quadratic = is_short(a) && !a.state && !a.final_state && !a.normalizer && a.T > 0;
  Scratch scratch(quadratic ? quadratic_scratch_bytes<F>(a) : forward_scratch_bytes<F>(a));
  const Index Vp = round_up(a.V, W<F>), groups = quadratic ? 1 : (Vp + columns - 1) / columns;
  for (Index item = first; item < last; item++) {
    scratch.reset();
    const Index head = item / groups, begin = item % groups * columns;
    if (quadratic) {
      forward_quadratic<F, Delta>(a, head, scratch);
    } else {
      forward_recurrent<F, Delta>(a, head, begin, min(Vp, begin + columns), scratch);
    }
  }
}

template <class F, bool Delta>
void causal_backward(const Causal& a, Index first, Index last) {
  const bool quadratic = is_short(a) && !a.state && !a.d_final_state && a.T > 0 && !a.normalizer &&
                         !a.d_state && !a.d_normalizer;
  Scratch scratch(quadratic ? quadratic_scratch_bytes<F>(a) : backward_scratch_bytes<F>(a));
  for (Index head = first; head < last; head++) {
    scratch.reset();
    if (quadratic) {
      backward_quadratic<F, Delta>(a, head, scratch);
    } else {
      backward_recurrent<F, Delta>(a, head, scratch);
    }
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
