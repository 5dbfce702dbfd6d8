// causal_sum and causal_delta over the heads [first, last): forward and backward.
#pragma once

#include "quadratic.h"

namespace fwm {
namespace FWM_ISA {

// Time steps that are prepared at a time: what fits L1 beside the state, where they are copied.
template <class F>
Index block_rows(const Causal& a) {
  const bool copied = a.features.map != FeatureMap::none || a.features.sum_norm || a.mask ||
                      a.attn_norm != AttnNorm::none || a.dtype != kArithmetic<F>;
  if (!copied && a.features.K % W<F> == 0 && a.V % W<F> == 0) return 64;
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
  FeatureStream<F> queries(a.features, HeadRows(a.q, n, h, a.dtype), a.T, nullptr, capacity, scratch);
  FeatureStream<F> keys(a.features, HeadRows(a.k, n, h, a.dtype), a.T, mask, capacity, scratch);
  Normalization<F> norm(a, head, scratch);
  F* v_scratch = scratch.take<F>(capacity * padded);
  F* y_scratch = scratch.take<F>(capacity * padded);
  F* r_scratch = scratch.take<F>(capacity * padded);
  F* beta = scratch.take<F>(capacity);
  F* panels = scratch.take<F>(K * padded) - begin * K;
  HeadRows values(a.v, n, h, a.dtype), outputs(a.y, n, h, a.dtype);
  HeadRows residuals = residual_rows<F>(a, head);
  values.offset += begin, outputs.offset += begin, residuals.offset += begin;

  load_state<Delta>(a.state, head, K, a.V, false, begin, end, panels);
  norm.start(a.normalizer, head, K);
  for_spans(a.T, capacity, 1, [&](const Span& span) {
    const View<F> q = queries.load(span, norm.on()), k = keys.load(span, norm.full());
    const View<F> v = read_rows(values, span, a.T, width, padded, v_scratch, mask);
    const View<F> y = write_rows(outputs, span, width, padded, y_scratch);
    View<F> r{r_scratch, padded};
    if (a.residual) r = write_rows(residuals, span, width, padded, r_scratch);
    if (Delta) load_scalars(HeadRows(a.beta, n, h, kArithmetic<F>), span, beta, mask);
    norm.apply(span, q, k, beta, begin == 0 && a.denominator);
    for_panels<F, Delta>(begin, end, [&](auto vectors, Index c) {
      constexpr int NV = decltype(vectors)::value;
      const View<F> vc = v.from_column(c - begin), yc = y.from_column(c - begin);
      if constexpr (Delta) {
        delta_steps<F, NV>(span.padded, K, Kp, q, k, vc, beta, yc, r.from_column(c - begin),
                           panels + c * K);
      } else {
        sum_steps<F, NV>(span.padded, K, q, k, vc, yc, panels + c * K);
      }
    });
    finish_rows(outputs, span, width, y);
    if (a.residual) finish_rows(residuals, span, width, r);
  });
  store_state<Delta>(a.final_state, head, K, a.V, begin, end, panels);
  if (begin == 0) norm.finish(a.final_normalizer, head, K);
}

template <class F>
Index backward_scratch_bytes(const Causal& a) {
  const Index rows = block_rows<F>(a), Vp = round_up(a.V, W<F>), T = a.T;
  const Index Kp = FeatureRows<F>::padded_K(a.features), dp = FeatureRows<F>::padded_d(a.features);
  const Index kept = a.dtype == kArithmetic<F> ? 0 : T * (a.V + a.features.d);
  return (rows * (5 * Vp + 2 * Kp + 2 * dp + 1) + a.features.K * Vp + a.V * Kp + Vp + kept) *
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
  FeatureStream<F> queries(a.features, HeadRows(a.q, n, h, a.dtype), a.T, nullptr, capacity, scratch);
  FeatureStream<F> keys(a.features, HeadRows(a.k, n, h, a.dtype), a.T, mask, capacity, scratch);
  Normalization<F> norm(a, head, scratch);
  const Index dp = queries.padded_d();
  F* v_scratch = scratch.take<F>(capacity * Vp);
  F* r_scratch = scratch.take<F>(capacity * Vp);
  F* dy_scratch = scratch.take<F>(capacity * Vp);
  F* dv_scratch = scratch.take<F>(capacity * Vp);
  F* updates = scratch.take<F>(capacity * Vp);  // beta_t r_t
  F* beta = scratch.take<F>(capacity);
  F* dq_scratch = scratch.take<F>(capacity * Kp);
  F* dk_scratch = scratch.take<F>(capacity * Kp);
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
  if (Delta && a.dtype != kArithmetic<F>) {
    dv_kept = HeadRows(Rows{scratch.take<F>(T * V), 0, 0, V}, 0, 0, kArithmetic<F>);
    dk_kept = HeadRows(Rows{scratch.take<F>(T * d), 0, 0, d}, 0, 0, kArithmetic<F>);
  }
  // The rule's own gradients of q and k are those of the raw rows.
  const bool plain = !norm.on() && !queries.mapped();
  const auto gradient_rows = [&](const HeadRows& out, const Span& span, const bool* masked, F* own) {
    return plain && !masked ? write_rows(out, span, d, Kp, own) : View<F>{own, Kp};
  };
  const auto done_in_place = [&](const HeadRows& out, const Span& span, const bool* masked) {
    return plain && !masked && in_place<F>(out, span, d);
  };

  load_state<Delta>(a.d_final_state, head, K, V, false, 0, Vp, by_key);
  load_state<Delta>(a.d_final_state, head, K, V, true, 0, Kp, by_value);
  norm.start(a.d_final_normalizer, head, K);
  for_spans(T, capacity, -1, [&](const Span& span) {
    const View<F> q = queries.load(span, norm.on()), k = keys.load(span, norm.full());
    const View<F> dy = read_rows(dys, span, T, V, Vp, dy_scratch);
    const View<F> dv = write_rows(dv_kept, span, V, Vp, dv_scratch);
    const View<F> dk = gradient_rows(dk_kept, span, mask, dk_scratch);
    View<F> v{v_scratch, Vp}, r{r_scratch, Vp};
    if (!Delta || norm.full()) v = read_rows(values, span, T, V, Vp, v_scratch, mask);
    if constexpr (Delta) {
      r = read_rows(residuals, span, T, V, Vp, r_scratch);
      load_scalars(betas, span, beta, mask);
    }
    norm.reapply(span, q, k, beta);
    for_panels<F, Delta>(0, Vp, [&](auto vectors, Index c) {
      constexpr int NV = decltype(vectors)::value;
      const View<F> dyc = dy.from_column(c), dvc = dv.from_column(c);
      if constexpr (Delta) {
        delta_reverse_steps<F, NV>(span.padded, K, Kp, q, k, dyc, beta, dvc, by_key + c * K);
      } else {
        sum_steps<F, NV>(span.padded, K, k, q, dyc, dvc, by_key + c * K);
      }
    });
    if constexpr (Delta) {
      finish_updates(a, head, span, norm, v, dy, beta, r, dv, updates, Vp, spare);
    } else {
      for (Index i = 0; norm.on() && i < span.count; i++) {
        const Index t = span.time(i);
        norm.set_gradients(t, dy_dot_y(outputs, t, V, Vp, dy.row(i), spare), 0);
      }
    }
    for_panels<F, Delta>(0, Kp, [&](auto vectors, Index c) {
      constexpr int NV = decltype(vectors)::value;
      const View<F> qc = q.from_column(c), dkc = dk.from_column(c);
      if constexpr (Delta) {
        delta_key_steps<F, NV>(span.padded, V, View<F>{updates, Vp}, dy, dv, qc, k.from_column(c),
                               dkc, by_value + c * V);
      } else {
        sum_steps<F, NV>(span.padded, V, v, dy, qc, dkc, by_value + c * V);
      }
    });
    norm.undo(span, q, k);
    norm.reverse(span, q, k, dk);
    finish_rows(dv_kept, span, V, dv);
    if (!done_in_place(dk_kept, span, mask)) {
      store_rows(dk_kept, span, d, keys.backward(span, dk, dx));
    }
  });
  store_state<Delta>(a.d_state, head, K, V, 0, Vp, by_key);
  norm.finish(a.d_normalizer, head, K);

  load_state<Delta>(a.state, head, K, V, true, 0, Kp, by_value);
  norm.start(a.normalizer, head, K);
  for_spans(T, capacity, 1, [&](const Span& span) {
    View<F> q{nullptr, 0};
    if (!plain) q = queries.load(span, norm.on());
    const View<F> k = keys.load(span, norm.full());
    const View<F> dy = read_rows(dys, span, T, V, Vp, dy_scratch);
    const View<F> dq = gradient_rows(dq_out, span, nullptr, dq_scratch);
    View<F> dk{dk_scratch, Kp}, dv{dv_scratch, Vp}, v{v_scratch, Vp};
    const bool ready = Delta && done_in_place(dk_kept, span, mask);
    if constexpr (Delta) {
      const View<F> r = read_rows(residuals, span, T, V, Vp, r_scratch);
      load_scalars(betas, span, beta, mask);
      dv = read_rows(dv_kept, span, T, V, Vp, dv_scratch);
      norm.reapply(span, q, k, beta);
      scale_rows(span.padded, Vp, beta, r, updates);
      if (ready) {
        dk = view_in_place<F>(dk_kept, span);
      } else {
        set_zero(dk_scratch, span.padded * Kp);
      }
    } else {
      v = read_rows(values, span, T, V, Vp, v_scratch, mask);
      norm.reapply(span, q, k, beta);
    }
    for_panels<F, Delta>(0, Kp, [&](auto vectors, Index c) {
      constexpr int NV = decltype(vectors)::value;
      const View<F> kc = k.from_column(c), dqc = dq.from_column(c);
      if constexpr (Delta) {
        delta_query_steps<F, NV>(span.padded, V, View<F>{updates, Vp}, dy, dv, kc, dqc,
                                 dk.from_column(c), by_value + c * V);
      } else {
        sum_steps<F, NV>(span.padded, V, dy, v, kc, dqc, by_value + c * V);
      }
    });
    norm.undo(span, q, k);
    norm.ahead(span, k, dq, dk, true);
    if (!done_in_place(dq_out, span, nullptr)) {
      store_rows(dq_out, span, d, queries.backward(span, dq, dx));
    }
    if (Delta && !ready) {
      const View<F> rest = keys.backward(span, dk, dx);
      load_rows(dk_kept, span, d, dp, partial);
      for (Index i = 0; i < span.count * dp; i += W<F>) {
        store(partial + i, load(partial + i) + load(rest.data + i));
      }
      store_rows(dk_out, span, d, View<F>{partial, dp});
    }
    if (Delta && a.dtype != kArithmetic<F>) {
      if (ready) store_rows(dk_out, span, d, dk);
      store_rows(dv_out, span, V, dv);
    }
  });
}

// Work items: heads, each cut into groups of `columns` values where there are few heads.
template <class F, bool Delta>
void causal_forward(const Causal& a, Index columns, Index first, Index last) {
  Scratch scratch(a.quadratic ? quadratic_scratch_bytes<F>(a) : forward_scratch_bytes<F>(a));
  const Index Vp = round_up(a.V, W<F>), groups = a.quadratic ? 1 : (Vp + columns - 1) / columns;
  for (Index item = first; item < last; item++) {
    scratch.reset();
    const Index head = item / groups, begin = item % groups * columns;
    if (a.quadratic) {
      forward_quadratic<F, Delta>(a, head, scratch);
    } else {
      forward_recurrent<F, Delta>(a, head, begin, min(Vp, begin + columns), scratch);
    }
  }
}

template <class F, bool Delta>
void causal_backward(const Causal& a, Index first, Index last) {
  Scratch scratch(a.quadratic ? quadratic_scratch_bytes<F>(a) : backward_scratch_bytes<F>(a));
  for (Index head = first; head < last; head++) {
    scratch.reset();
    if (a.quadratic) {
      backward_quadratic<F, Delta>(a, head, scratch);
    } else {
      backward_recurrent<F, Delta>(a, head, scratch);
    }
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
