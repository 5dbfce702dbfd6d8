// The self-referential weight matrix, one time step after the other; a sequence per lane.
#pragma once

#include "recurrent.h"

namespace fwm {
namespace FWM_ISA {

// Each of the four parts of a row, y | q | k | beta, times its own number.
template <class F>
FWM_INLINE void scale_parts(const F* beta, const F* x, F* y, Index d) {
  for (Index part = 0; part < 4; part++) {
    const Vec<F> b = lanes_at(beta, part);
    const Index begin = part * d, end = part < 3 ? begin + d : begin + 4;
    for (Index i = begin; i < end; i++) store(y + i * W<F>, b * lanes_at(x, i));
  }
}

// Kept for the backward pass: q | k | beta, which is zero where nothing is written, | W^T (q - k).
template <class F>
void self_referential_forward(const SelfReferential& p, Index first, Index last) {
  const Index T = p.T, d = p.d, M = 3 * d + 4, H = p.H, all = p.N * H;
  constexpr Index w = W<F>;
  const Index wide = LaneGroup<F>::padded(d), row = LaneGroup<F>::padded(M);
  const Index matrix = LaneGroup<F>::padded(d * M);
  Scratch scratch((matrix + 2 * row + 3 * wide + w) * Index(sizeof(F)) + 7 * 64);
  for (Index item = first; item < last; item++) {
    scratch.reset();
    const LaneSpan span(item, p.N, H, w);
    const LaneGroup<F> lanes(span.count);
    F *weights = scratch.take<F>(matrix), *a = scratch.take<F>(row), *u = scratch.take<F>(row);
    F *x = scratch.take<F>(wide), *apart = scratch.take<F>(wide), *key = scratch.take<F>(wide);
    F* alive = scratch.take<F>(w);
    const bool* mask = p.mask ? p.mask + span.n * T : nullptr;
    const auto rows = [&](const void* data, Index steps, Index width) {
      return LaneRows<F>(data, lanes, span.first, all, H, steps, width);
    };
    const LaneRows<F> inputs = rows(p.x, T, d), outputs = rows(p.y, T, d);
    rows(p.weights, 1, d * M).load(0, weights);
    for (Index i = 0; i < M; i++) store(u + i * w, Vec<F>{});
    for (Index i = 0; i < d; i++) store(key + i * w, Vec<F>{});
    for (Index t = 0; t < T; t++) {
      F *q = kept_row<F>(p.kept, item, T, t, 5 * d + 8), *k = q + d * w, *beta = k + d * w;
      F* change = beta + 4 * w;
      lanes.step(mask, T, t, alive);
      const Vec<F> on = load(alive);
      inputs.load(t, x, alive);
      write_and_read<true>(weights, d, M, key, u, x, a);  // what the last step changes, too
      outputs.save(t, a);
      softmax(a + d * w, q, d);
      softmax(a + 2 * d * w, k, d);
      for (Index i = 0; i < 4; i++) store(beta + i * w, on * sigmoid<F>(lanes_at(a, 3 * d + i)));
      for (Index i = 0; i < d; i++) {
        store(apart + i * w, lanes_at(q, i) - lanes_at(k, i));
        store(key + i * w, lanes_at(k, i));
      }
      write_and_read<false, F>(weights, d, M, nullptr, nullptr, apart, change);
      scale_parts(beta, change, u, d);
    }
    write_only(weights, d, M, key, u);
    rows(p.final_weights, 1, d * M).save(0, weights);
  }
}

template <class F>
void self_referential_backward(const SelfReferential& p, Index first, Index last) {
  const Index T = p.T, d = p.d, M = 3 * d + 4, H = p.H, all = p.N * H;
  constexpr Index w = W<F>;
  const Index wide = LaneGroup<F>::padded(d), row = LaneGroup<F>::padded(M);
  const Index matrix = LaneGroup<F>::padded(d * M);
  Scratch scratch((2 * matrix + 4 * row + (4 + kSavedSteps) * wide + w) * Index(sizeof(F)) + 13 * 64);
  for (Index item = first; item < last; item++) {
    scratch.reset();
    const LaneSpan span(item, p.N, H, w);
    const LaneGroup<F> lanes(span.count);
    F *weights = scratch.take<F>(matrix), *G = scratch.take<F>(matrix);
    F *u = scratch.take<F>(row), *du = scratch.take<F>(row), *d_change = scratch.take<F>(row);
    F *da = scratch.take<F>(row), *x = scratch.take<F>(wide), *apart = scratch.take<F>(wide);
    F *dk = scratch.take<F>(wide), *d_apart = scratch.take<F>(wide);
    F *waiting = scratch.take<F>(kSavedSteps * wide), *alive = scratch.take<F>(w);
    const bool* mask = p.mask ? p.mask + span.n * T : nullptr;
    const auto rows = [&](const void* data, Index steps, Index width) {
      return LaneRows<F>(data, lanes, span.first, all, H, steps, width);
    };
    const LaneRows<F> inputs = rows(p.x, T, d), dy = rows(p.dy, T, d), d_inputs = rows(p.dx, T, d);
    rows(p.final_weights, 1, d * M).load(0, weights);
    rows(p.d_final_weights, 1, d * M).load(0, G);
    Index end = T;  // gradients of steps [t, end) are waiting
    for (Index t = T - 1; t >= 0; t--) {
      const F *q = kept_row<F>(p.kept, item, T, t, 5 * d + 8), *k = q + d * w, *beta = k + d * w;
      const F* change = beta + 4 * w;
      F* dx = waiting + t % kSavedSteps * wide;
      lanes.step(mask, T, t, alive);
      inputs.load(t, x, alive);
      dy.load(t, da, alive);
      scale_parts(beta, change, u, d);
      for (Index i = 0; i < d; i++) {
        store(apart + i * w, lanes_at(q, i) - lanes_at(k, i));
        for (F* zero : {dk, d_apart, dx}) store(zero + i * w, Vec<F>{});
      }
      write_and_read<false, F>(G, d, M, nullptr, nullptr, k, du);
      project(G, d, M, u, dk);
      scale_parts(beta, du, d_change, d);
      for (Index part = 0; part < 4; part++) {
        const Index begin = part * d, end = part < 3 ? begin + d : begin + 4;
        const Vec<F> b = lanes_at(beta, part);
        Vec<F> sum{};
        for (Index i = begin; i < end; i++) {
          sum += lanes_at(du, i) * lanes_at(change, i);
          store(u + i * w, -lanes_at(u, i));
        }
        store(da + (3 * d + part) * w, sum * b * (F(1) - b));
      }
      write_and_project(weights, d, M, k, u, d_change, d_apart);  // the write taken back
      for (Index i = 0; i < d; i++) store(dk + i * w, lanes_at(dk, i) - lanes_at(d_apart, i));
      softmax_gradient(q, d_apart, da + d * w, d);
      softmax_gradient(k, dk, da + 2 * d * w, d);
      project(weights, d, M, da, dx);
      write_only(G, d, M, apart, d_change);
      write_only(G, d, M, x, da);
      if (t % kSavedSteps == 0) {
        for (Index i = t; i < end; i++) d_inputs.save(i, waiting + i % kSavedSteps * wide, end);
        end = t;
      }
    }
    rows(p.d_weights, 1, d * M).save(0, G);
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
