// The recurrences, a few time steps per pass over the state ("time-blocked").
//
// A state panel has one row per feature of one side and NV vectors along the other side; it stays in
// L1 or L2. TB steps share one load and store of it. Everything here works on padded scratch: n is a
// multiple of TB, and a row of zeros is a step that changes nothing.
#pragma once

#include "vec.h"

namespace fwm {
namespace FWM_ISA {

// Steps per pass: what the registers hold beside the state.
template <int NV>
constexpr int kSteps = NV == 1 || (FWM_REGISTERS == 32 && NV == 2) ? 4 : 2;
constexpr int kStepUnit = 4;  // a multiple of every kSteps
// Widest panel. The sum rule's pass has so little to do per element that it wants more steps instead.
template <bool Delta>
constexpr int kPanelVectors = FWM_REGISTERS == 32 && Delta ? 4 : 2;

// Call run(std::integral_constant<int, NV>, column) for panels that cover `columns` (padded).
template <class F, bool Delta, class Run>
FWM_INLINE void for_panels(Index begin, Index end, Run run) {
  constexpr int widest = kPanelVectors<Delta>;
  Index c = begin;
  for (; c + widest * W<F> <= end; c += widest * W<F>) {
    run(std::integral_constant<int, widest>{}, c);
  }
  if (widest > 2 && c + 2 * W<F> <= end) {
    run(std::integral_constant<int, 2>{}, c);
    c += 2 * W<F>;
  }
  for (; c < end; c += W<F>) run(std::integral_constant<int, 1>{}, c);
}

// Rows of a block, by step: in scratch, or in place in a tensor (then ld may be negative).
template <class F>
struct View {
  F* data;
  Index ld;

  FWM_INLINE F* row(Index t) const { return data + t * ld; }
  FWM_INLINE View from_column(Index c) const { return {data + c, ld}; }
};

// Sum rule: S <- S + k_t (x) v_t ; y_t = S^T q_t. S has E rows.
template <class F, int NV>
void sum_steps(Index n, Index E, View<F> q, View<F> k, View<F> v, View<F> y, F* S) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  for (Index t0 = 0; t0 < n; t0 += TB) {
    const F *qt = q.row(t0), *kt = k.row(t0);
    Vec<F> u[TB][NV], out[TB][NV];
    FWM_EACH(t, TB) FWM_EACH(j, NV) {
      u[t][j] = load(v.row(t0 + t) + j * w);
      out[t][j] = Vec<F>{};
    }
    for (Index i = 0; i < E; i++) {
      F* row = S + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(kt[t * k.ld + i]), b = spread(qt[t * q.ld + i]);
        FWM_EACH(j, NV) {
          s[j] += a * u[t][j];
          out[t][j] += b * s[j];
        }
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
    FWM_EACH(t, TB) FWM_EACH(j, NV) store(y.row(t0 + t) + j * w, out[t][j]);
  }
}

// kk[i * TB + j] = k_i . k_j for j < i of TB rows and, with Queries, kq[i * TB + j] = k_i . q_j for
// j <= i.
template <class F, int TB, bool Queries>
FWM_INLINE void couplings(Index E, const F* k, Index ldk, const F* q, Index ldq, F* kk, F* kq) {
  constexpr int keys = TB * (TB - 1) / 2, pairs = keys + (Queries ? keys + TB : 0);
  constexpr int padded = pairs <= 1 ? 1 : pairs <= 4 ? 4 : pairs <= 8 ? 8 : 16;
  Vec<F> sums[padded];
  FWM_EACH(x, padded) sums[x] = Vec<F>{};
  for (Index e = 0; e < E; e += W<F>) {
    Vec<F> key[TB], query[TB];
    FWM_EACH(i, TB) key[i] = load(k + i * ldk + e);
    if (Queries) FWM_EACH(i, TB) query[i] = load(q + i * ldq + e);
    int x = 0;
    FWM_EACH(i, TB) FWM_EACH(j, i) sums[x++] += key[i] * key[j];
    if (Queries) FWM_EACH(i, TB) FWM_EACH(j, i + 1) sums[x++] += key[i] * query[j];
  }
  F found[padded];
  totals<padded>(sums, found);
  int x = 0;
  FWM_EACH(i, TB) FWM_EACH(j, i) kk[i * TB + j] = found[x++];
  if (Queries) FWM_EACH(i, TB) FWM_EACH(j, i + 1) kq[i * TB + j] = found[x++];
}

// out_t = S^T k_t of TB keys.
template <class F, int NV, int TB>
FWM_INLINE void retrieve(Index E, View<F> k, const F* S, Vec<F> (&out)[TB][NV]) {
  FWM_EACH(t, TB) FWM_EACH(j, NV) out[t][j] = Vec<F>{};
  for (Index i = 0; i < E; i++) {
    FWM_EACH(t, TB) {
      const Vec<F> a = spread(k.data[t * k.ld + i]);
      FWM_EACH(j, NV) out[t][j] += a * load(S + (i * NV + j) * W<F>);
    }
  }
}

// Delta rule: r_t = v_t - S^T k_t ; S <- S + k_t (x) beta_t r_t ; y_t = S^T q_t.
// A pass over S writes TB updates, reads for TB queries and retrieves for the next TB keys; what these
// keys miss of each other's updates comes from their inner products.
template <class F, int NV>
void delta_steps(Index n, Index E, Index padded_E, View<F> q, View<F> k, View<F> v, const F* beta,
                 View<F> y, View<F> r, F* S) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  Vec<F> retrieved[TB][NV];
  retrieve<F, NV, TB>(E, k, S, retrieved);
  for (Index t0 = 0; t0 < n; t0 += TB) {
    const F *qt = q.row(t0), *kt = k.row(t0);
    F c[TB * TB];
    couplings<F, TB, false>(padded_E, kt, k.ld, nullptr, 0, c, nullptr);
    Vec<F> u[TB][NV], out[TB][NV];
    FWM_EACH(t, TB) {
      const Vec<F> b = spread(beta[t0 + t]);
      FWM_EACH(j, NV) {
        Vec<F> rest = load(v.row(t0 + t) + j * w) - retrieved[t][j];
        FWM_EACH(s, t) rest -= spread(c[t * TB + s]) * u[s][j];
        store(r.row(t0 + t) + j * w, rest);
        u[t][j] = b * rest;
        out[t][j] = retrieved[t][j] = Vec<F>{};
      }
    }
    const F* next = t0 + TB < n ? k.row(t0 + TB) : kt;  // after the last steps nobody asks
    for (Index i = 0; i < E; i++) {
      F* row = S + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(kt[t * k.ld + i]), b = spread(qt[t * q.ld + i]);
        FWM_EACH(j, NV) {
          s[j] += a * u[t][j];
          out[t][j] += b * s[j];
        }
      }
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(next[t * k.ld + i]);
        FWM_EACH(j, NV) retrieved[t][j] += a * s[j];
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
    FWM_EACH(t, TB) FWM_EACH(j, NV) store(y.row(t0 + t) + j * w, out[t][j]);
  }
}

// Delta rule backward, the sequential part. Rows run backward in time; G is the gradient of S:
// G <- G + q_t (x) dy_t ; u_t = G^T k_t ; G <- G - k_t (x) beta_t u_t.
template <class F, int NV>
void delta_reverse_steps(Index n, Index E, Index padded_E, View<F> q, View<F> k, View<F> dy,
                         const F* beta, View<F> u, F* G) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  Vec<F> ahead[TB][NV];
  retrieve<F, NV, TB>(E, k, G, ahead);
  for (Index t0 = 0; t0 < n; t0 += TB) {
    const F *qt = q.row(t0), *kt = k.row(t0);
    F kk[TB * TB], kq[TB * TB];
    couplings<F, TB, true>(padded_E, kt, k.ld, qt, q.ld, kk, kq);
    Vec<F> g[TB][NV], dv[TB][NV];
    FWM_EACH(t, TB) FWM_EACH(j, NV) g[t][j] = load(dy.row(t0 + t) + j * w);
    FWM_EACH(t, TB) {
      const Vec<F> b = spread(beta[t0 + t]);
      FWM_EACH(j, NV) {
        Vec<F> x = ahead[t][j];
        FWM_EACH(s, t + 1) x += spread(kq[t * TB + s]) * g[s][j];
        FWM_EACH(s, t) x -= spread(kk[t * TB + s]) * dv[s][j];
        store(u.row(t0 + t) + j * w, x);
        dv[t][j] = b * x;
        ahead[t][j] = Vec<F>{};
      }
    }
    const F* next = t0 + TB < n ? k.row(t0 + TB) : kt;
    for (Index i = 0; i < E; i++) {
      F* row = G + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(qt[t * q.ld + i]), b = spread(kt[t * k.ld + i]);
        FWM_EACH(j, NV) {
          s[j] += a * g[t][j];
          s[j] -= b * dv[t][j];
        }
      }
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(next[t * k.ld + i]);
        FWM_EACH(j, NV) ahead[t][j] += a * s[j];
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
  }
}

// Delta rule backward, reading the gradient of S: dk_t = G u_t with G <- G + q_t dy_t^T before and
// G <- G - k_t dv_t^T after. Rows run backward in time; G is transposed: E rows of values.
template <class F, int NV>
void delta_key_steps(Index n, Index E, View<F> u, View<F> dy, View<F> dv, View<F> q, View<F> k,
                     View<F> dk, F* G) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  for (Index t0 = 0; t0 < n; t0 += TB) {
    const F *ut = u.row(t0), *dyt = dy.row(t0), *dvt = dv.row(t0);
    Vec<F> query[TB][NV], key[TB][NV], out[TB][NV];
    FWM_EACH(t, TB) FWM_EACH(j, NV) {
      query[t][j] = load(q.row(t0 + t) + j * w);
      key[t][j] = load(k.row(t0 + t) + j * w);
      out[t][j] = Vec<F>{};
    }
    for (Index i = 0; i < E; i++) {
      F* row = G + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(dyt[t * dy.ld + i]), b = spread(ut[t * u.ld + i]);
        const Vec<F> c = spread(dvt[t * dv.ld + i]);
        FWM_EACH(j, NV) {
          s[j] += a * query[t][j];
          out[t][j] += b * s[j];
          s[j] -= c * key[t][j];
        }
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
    FWM_EACH(t, TB) FWM_EACH(j, NV) store(dk.row(t0 + t) + j * w, out[t][j]);
  }
}

// Delta rule backward, reading S again: dk_t -= S dv_t, then S <- S + k_t u_t^T, then dq_t = S dy_t.
// S is transposed: E rows of values.
template <class F, int NV>
void delta_query_steps(Index n, Index E, View<F> u, View<F> dy, View<F> dv, View<F> k, View<F> dq,
                       View<F> dk, F* S) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  for (Index t0 = 0; t0 < n; t0 += TB) {
    const F *ut = u.row(t0), *dyt = dy.row(t0), *dvt = dv.row(t0);
    Vec<F> key[TB][NV], out_q[TB][NV], out_k[TB][NV];
    FWM_EACH(t, TB) FWM_EACH(j, NV) {
      key[t][j] = load(k.row(t0 + t) + j * w);
      out_k[t][j] = load(dk.row(t0 + t) + j * w);
      out_q[t][j] = Vec<F>{};
    }
    for (Index i = 0; i < E; i++) {
      F* row = S + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(ut[t * u.ld + i]), b = spread(dyt[t * dy.ld + i]);
        const Vec<F> c = spread(dvt[t * dv.ld + i]);
        FWM_EACH(j, NV) {
          out_k[t][j] -= c * s[j];
          s[j] += a * key[t][j];
          out_q[t][j] += b * s[j];
        }
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
    FWM_EACH(t, TB) FWM_EACH(j, NV) {
      store(dq.row(t0 + t) + j * w, out_q[t][j]);
      store(dk.row(t0 + t) + j * w, out_k[t][j]);
    }
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
