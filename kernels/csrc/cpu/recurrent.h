// The recurrent delta rule, one time step after the other; a sequence per lane.
#pragma once

#include "lanes.h"

namespace fwm {
namespace FWM_ISA {

// Group `item` of sequences: those of one head, W at a time.
struct LaneSpan {
  LaneSpan(Index item, Index N, Index H, Index lanes)
      : n(item / H * lanes), h(item % H), count(min(N - n, lanes)), first(n * H + h) {}
  Index n, h, count, first;  // first: in N * H; the next lane's is H further
};

template <class F>
void recurrent_forward(const Recurrent& p, Index first, Index last) {
  const Index T = p.T, d = p.d, M = 3 * d + 1, H = p.H, all = p.N * H;
  constexpr Index w = W<F>;
  const Index wide = LaneGroup<F>::padded(d);
  Scratch scratch((LaneGroup<F>::padded(d * d) + LaneGroup<F>::padded(M) + 5 * wide + w) * Index(sizeof(F)) +
                  8 * 64);
  for (Index item = first; item < last; item++) {
    scratch.reset();
    const LaneSpan span(item, p.N, H, w);
    const LaneGroup<F> lanes(span.count);
    F *S = scratch.take<F>(LaneGroup<F>::padded(d * d)), *a = scratch.take<F>(LaneGroup<F>::padded(M));
    F *s = scratch.take<F>(wide), *y = scratch.take<F>(wide), *r = scratch.take<F>(wide);
    F *u = scratch.take<F>(wide), *out = scratch.take<F>(wide), *alive = scratch.take<F>(w);
    const F* R = static_cast<const F*>(p.weights) + span.h * d * M;
    const bool* mask = p.mask ? p.mask + span.n * T : nullptr;
    const auto rows = [&](const void* data, Index steps, Index width) {
      return LaneRows<F>(data, lanes, span.first, all, H, steps, width);
    };
    const LaneRows<F> x = rows(p.x, T, M), outputs = rows(p.y, T, d), feedback = rows(p.feedback, T, d);
    rows(p.state, 1, d * d).load(0, S);
    rows(p.last, 1, d).load(0, y);
    F *q = a, *k = a + d * w, *v = a + 2 * d * w, *beta = a + 3 * d * w;
    for (Index t = 0; t < T; t++) {
      lanes.step(mask, T, t, alive);
      const Vec<F> on = load(alive);
      for (Index i = 0; i < d; i++) store(s + i * w, tangent<F>(lanes_at(y, i)));
      feedback.save(t, s);
      x.load(t, a, alive);
      read_shared(R, d, M, s, a);
      softmax(q, q, d);
      softmax(k, k, d);
      store(beta, on * sigmoid<F>(load(beta)));
      write_and_read<false, F>(S, d, d, nullptr, nullptr, k, r);
      for (Index i = 0; i < d; i++) {
        const Vec<F> rest = lanes_at(v, i) - lanes_at(r, i);
        store(v + i * w, rest);
        store(u + i * w, load(beta) * rest);
      }
      // q | k | v - S^T k | beta, which is zero where nothing is written
      __builtin_memcpy(kept_row<F>(p.kept, item, T, t, M), a, M * w * sizeof(F));
      write_and_read<true>(S, d, d, k, u, q, out);
      for (Index i = 0; i < d; i++) {
        const Vec<F> e = lanes_at(out, i);
        store(y + i * w, on > 0 ? e : lanes_at(y, i));
        store(out + i * w, on * e);
      }
      outputs.save(t, out);
    }
    rows(p.final_state, 1, d * d).save(0, S);
    rows(p.final_last, 1, d).save(0, y);
  }
}

constexpr Index kSavedSteps = 16;  // gradients that wait in lanes until they are written in order

// G is the gradient of S; the carry is that of the last output.
template <class F>
void recurrent_backward(const Recurrent& p, Index first, Index last) {
  const Index T = p.T, d = p.d, M = 3 * d + 1, H = p.H, all = p.N * H;
  constexpr Index w = W<F>;
  const Index wide = LaneGroup<F>::padded(d), square = LaneGroup<F>::padded(d * d);
  const Index row = LaneGroup<F>::padded(M);
  Scratch scratch((2 * square + kSavedSteps * row + 9 * wide + w) * Index(sizeof(F)) + 14 * 64);
  for (Index item = first; item < last; item++) {
    scratch.reset();
    const LaneSpan span(item, p.N, H, w);
    const LaneGroup<F> lanes(span.count);
    F *S = scratch.take<F>(square), *G = scratch.take<F>(square), *waiting = scratch.take<F>(kSavedSteps * row);
    F *s = scratch.take<F>(wide), *u = scratch.take<F>(wide), *g = scratch.take<F>(wide);
    F *carry = scratch.take<F>(wide), *dq = scratch.take<F>(wide), *dk = scratch.take<F>(wide);
    F *du = scratch.take<F>(wide), *erased = scratch.take<F>(wide), *ds = scratch.take<F>(wide);
    F* alive = scratch.take<F>(w);
    const F* R = static_cast<const F*>(p.weights) + span.h * d * M;
    const bool* mask = p.mask ? p.mask + span.n * T : nullptr;
    const auto rows = [&](const void* data, Index steps, Index width) {
      return LaneRows<F>(data, lanes, span.first, all, H, steps, width);
    };
    const LaneRows<F> dy = rows(p.dy, T, d), dx = rows(p.dx, T, M), feedback = rows(p.feedback, T, d);
    rows(p.final_state, 1, d * d).load(0, S);
    rows(p.d_final_state, 1, d * d).load(0, G);
    rows(p.d_final_last, 1, d).load(0, carry);
    Index end = T;  // gradients of steps [t, end) are waiting
    for (Index t = T - 1; t >= 0; t--) {
      lanes.step(mask, T, t, alive);
      const Vec<F> on = load(alive);
      const F *q = kept_row<F>(p.kept, item, T, t, M), *k = q + d * w, *r = k + d * w, *beta = r + d * w;
      F* da = waiting + t % kSavedSteps * row;
      feedback.load(t, s);
      dy.load(t, g, alive);
      const Vec<F> b = load(beta);
      for (Index i = 0; i < d; i++) {
        store(g + i * w, lanes_at(g, i) + on * lanes_at(carry, i));
        store(u + i * w, b * lanes_at(r, i));
        for (F* zero : {dq, dk, ds}) store(zero + i * w, Vec<F>{});
      }
      project(S, d, d, g, dq);
      write_and_read<true>(G, d, d, q, g, k, du);
      project(G, d, d, u, dk);
      Vec<F> d_beta{};
      for (Index i = 0; i < d; i++) {
        const Vec<F> change = lanes_at(du, i);
        d_beta += change * lanes_at(r, i);
        store(da + (2 * d + i) * w, b * change);
        store(erased + i * w, -b * change);
        store(u + i * w, -lanes_at(u, i));
      }
      write_and_project(S, d, d, k, u, erased, dk);  // the write taken back
      write_only(G, d, d, k, erased);
      softmax_gradient(q, dq, da, d);
      softmax_gradient(k, dk, da + d * w, d);
      store(da + 3 * d * w, d_beta * b * (F(1) - b));
      project_shared(R, d, M, da, ds);
      for (Index i = 0; i < d; i++) {
        const Vec<F> e = lanes_at(s, i), through = (F(1) - e * e) * lanes_at(ds, i);
        store(carry + i * w, on > 0 ? through : lanes_at(carry, i));
      }
      if (t % kSavedSteps == 0) {
        for (Index i = t; i < end; i++) dx.save(i, waiting + i % kSavedSteps * row, end);
        end = t;
      }
    }
    rows(p.d_state, 1, d * d).save(0, G);
    rows(p.d_last, 1, d).save(0, carry);
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
