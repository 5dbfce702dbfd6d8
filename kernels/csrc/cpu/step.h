// One time step on states that stay in memory: read once for delta's retrieval, then updated and read.
#pragma once

#include "block.h"

namespace fwm {
namespace FWM_ISA {

// NV vectors of columns of one state, of which the last may be partial: `part` numbers of it count.
// While a state is updated in cache, memory brings `next`, the state whose turn it is then.
template <class F, int NV, bool Delta, bool Partial>
FWM_INLINE void step_columns(Index K, Index V, const F* q, const F* k, F beta, const F* old, F* fresh,
                             const F* next, const F* v, F* y, Index part) {
  constexpr int R = 8 / NV;  // rows at a time: independent sums hide the latency of a product
  const auto get = [part](const F* p) { return Partial ? load_part(p, part) : load(p); };
  Vec<F> u[NV];
  FWM_EACH(j, NV) u[j] = get(v + j * W<F>);
  if constexpr (Delta) {
    Vec<F> retrieved[R][NV] = {};
    Index i = 0;
    for (; i + R <= K; i += R) {
      FWM_EACH(x, R) {
        const Vec<F> a = spread(k[i + x]);
        FWM_EACH(j, NV) retrieved[x][j] += a * get(old + (i + x) * V + j * W<F>);
      }
    }
    for (; i < K; i++) {
      FWM_EACH(j, NV) retrieved[0][j] += spread(k[i]) * get(old + i * V + j * W<F>);
    }
    FWM_EACH(j, NV) {
      Vec<F> sum = retrieved[0][j];
      FWM_UNROLL for (int x = 1; x < R; x++) sum += retrieved[x][j];
      u[j] = spread(beta) * (u[j] - sum);
    }
  }
  Vec<F> out[R][NV] = {};
  const auto write = [&](Index i, int x) __attribute__((always_inline)) {
    const Vec<F> a = spread(k[i]), b = spread(q[i]);
    FWM_EACH(j, NV) {
      const Index at = i * V + j * W<F>;
      __builtin_prefetch(next + at, 0, 2);
      const Vec<F> s = get(old + at) + a * u[j];
      if (Partial) {
        store_part(fresh + at, s, part);
      } else {
        store(fresh + at, s);
      }
      out[x][j] += b * s;
    }
  };
  Index i = 0;
  for (; i + R <= K; i += R) {
    FWM_EACH(x, R) write(i + x, x);
  }
  for (; i < K; i++) write(i, 0);
  FWM_EACH(j, NV) {
    Vec<F> sum = out[0][j];
    FWM_UNROLL for (int x = 1; x < R; x++) sum += out[x][j];
    if (Partial) {
      store_part(y + j * W<F>, sum, part);
    } else {
      store(y + j * W<F>, sum);
    }
  }
}

template <class F, bool Delta>
void step_state(Index K, Index V, const F* q, const F* k, F beta, const F* old, F* fresh,
                const F* next, const F* v, F* y) {
  Index c = 0;
#define FWM_STEP(NV, Partial, part) \
  step_columns<F, NV, Delta, Partial>(K, V, q, k, beta, old + c, fresh + c, next + c, v + c, y + c, part)
  // What retrieval has read should still be in L1 when it is updated.
  if (K * 4 * W<F> * Index(sizeof(F)) <= 32 * 1024) {
    for (; c + 4 * W<F> <= V; c += 4 * W<F>) FWM_STEP(4, false, 0);
  }
  for (; c + 2 * W<F> <= V; c += 2 * W<F>) FWM_STEP(2, false, 0);
  for (; c + W<F> <= V; c += W<F>) FWM_STEP(1, false, 0);
  if (c < V) FWM_STEP(1, true, V - c);
#undef FWM_STEP
}

template <class F>
class Stepper {
 public:
  static Index scratch_bytes(const Step& a) {
    const Index Vp = round_up(a.V, W<F>);
    return (2 * Vp + FeatureRows<F>::padded_K(a.features)) * sizeof(F) + 4 * 64 +
           2 * FeatureStream<F>::scratch_bytes(a.features, 1);
  }

  // State n, h of the result, from `old` and its normalizer; `next` is the old state after it.
  static void run(const Step& a, Index n, Index h, const F* old, const F* old_z, const F* next,
                  Scratch& scratch) {
    const Index K = a.features.K;
    const bool writes = !a.mask || a.mask[n];
    const Span now{0, 1, 1, 1, 1};
    FeatureStream<F> q(a.features, HeadRows(a.q, n, h, a.dtype), 1, nullptr, 1, scratch);
    FeatureStream<F> k(a.features, HeadRows(a.k, n, h, a.dtype), 1, &writes, 1, scratch);
    const Index Vp = round_up(a.V, W<F>);
    F* v = scratch.take<F>(Vp);
    F* y = scratch.take<F>(Vp);
    F beta = 0;
    const View<F> query = q.load(now, true), key = k.load(now, true);
    load_rows(HeadRows(a.v, n, h, a.dtype), now, a.V, Vp, v, &writes);
    if (a.delta && writes) HeadRows(a.beta, n, h, kArithmetic<F>).load(&beta, 0, 1, 1);
    if (a.attn_norm != AttnNorm::none) normalize(a, n, h, old_z, query, key, beta, scratch);
    const Index head = n * a.H + h;
    F* fresh = static_cast<F*>(a.new_state) + head * K * a.V;
    if (a.delta) {
      step_state<F, true>(K, a.V, query.data, key.data, beta, old, fresh, next, v, y);
    } else {
      step_state<F, false>(K, a.V, query.data, key.data, beta, old, fresh, next, v, y);
    }
    HeadRows(a.y, n, h, a.dtype).store(0, y, a.V);
  }

 private:
  static void normalize(const Step& a, Index n, Index h, const F* old_z, View<F> q, View<F> k, F& beta,
                        Scratch& scratch) {
    Causal one;
    one.T = 1;
    one.features = a.features;
    one.attn_norm = a.attn_norm;
    Normalization<F> norm(one, 0, scratch);
    norm.start(old_z, 0, a.features.K);
    norm.apply(Span{0, 1, 1, 1, 1}, q, k, &beta, false);
    norm.finish(a.new_normalizer, n * a.H + h, a.features.K);
  }
};

// Work items: states; or heads, where rows of the beam move within one buffer.
template <class F>
void step(const Step& a, Index first, Index last) {
  const Index K = a.features.K, size = K * a.V;
  const F* states = static_cast<const F*>(a.state);
  const F* zs = static_cast<const F*>(a.normalizer);
  Causal one;
  one.T = 1;
  one.features = a.features;
  Scratch scratch(Stepper<F>::scratch_bytes(a) + Normalization<F>::scratch_bytes(one));
  const auto run = [&](Index n, Index h, const F* old, const F* z, const F* next) {
    scratch.reset();
    Stepper<F>::run(a, n, h, old, z, next, scratch);
  };
  const auto source = [&](Index n, Index h) { return (a.rows ? a.rows[n] : n) * a.H + h; };
  if (!a.rows || a.state != a.new_state) {
    for (Index item = first; item < last; item++) {
      const Index n = item / a.H, h = item % a.H, from = source(n, h);
      const Index later = min(item + 1, last - 1);
      const F* next = states + source(later / a.H, later % a.H) * size;
      run(n, h, states + from * size, zs ? zs + from * K : nullptr, next);
    }
    return;
  }
  // Rows are updated in ascending order, so a source before its row is gone when it is wanted.
  Scratch kept(a.N * ((size + K) * sizeof(F) + 128 + sizeof(Index)) + 64);
  for (Index h = first; h < last; h++) {
    kept.reset();
    F** saved = kept.take<F*>(a.N);
    for (Index n = 0; n < a.N; n++) saved[n] = nullptr;
    for (Index n = 0; n < a.N; n++) {
      const Index from = a.rows[n];
      if (from >= n || saved[from]) continue;
      saved[from] = kept.take<F>(size + K);
      store_same(saved[from], states + (from * a.H + h) * size, size);
      if (zs) store_same(saved[from] + size, zs + (from * a.H + h) * K, K);
    }
    for (Index n = 0; n < a.N; n++) {
      const Index from = a.rows[n], head = from * a.H + h;
      const F* old = from < n ? saved[from] : states + head * size;
      const F* z = !zs ? nullptr : from < n ? saved[from] + size : zs + head * K;
      run(n, h, old, z, states + source(min(n + 1, a.N - 1), h) * size);
    }
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
