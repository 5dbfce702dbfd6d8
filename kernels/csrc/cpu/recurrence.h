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
constexpr int kSteps = FWM_REGISTERS == 32 || NV == 1 ? 4 : 2;
constexpr int kStepUnit = 4;  // a multiple of every kSteps
constexpr int kPanelVectors = 2;

// Call run(std::integral_constant<int, NV>, column) for panels that cover `columns` (padded).
template <class F, class Run>
FWM_INLINE void for_panels(Index begin, Index end, Run run) {
  Index c = begin;
  for (; c + kPanelVectors * W<F> <= end; c += kPanelVectors * W<F>) {
    run(std::integral_constant<int, kPanelVectors>{}, c);
  }
  for (; c < end; c += W<F>) run(std::integral_constant<int, 1>{}, c);
}

#define FWM_EACH(i, count) FWM_UNROLL for (int i = 0; i < (count); i++)

// Sum rule: S <- S + k_t (x) v_t ; y_t = S^T q_t. S has E rows.
template <class F, int NV>
void sum_steps(Index n, Index E, const F* q, const F* k, Index ld, const F* v, F* y, Index ldv,
               F* S) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  for (Index t0 = 0; t0 < n; t0 += TB, q += TB * ld, k += TB * ld, v += TB * ldv, y += TB * ldv) {
    Vec<F> u[TB][NV], out[TB][NV];
    FWM_EACH(t, TB) FWM_EACH(j, NV) {
      u[t][j] = load(v + t * ldv + j * w);
      out[t][j] = Vec<F>{};
    }
    for (Index i = 0; i < E; i++) {
      F* row = S + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(k[t * ld + i]), b = spread(q[t * ld + i]);
        FWM_EACH(j, NV) {
          s[j] += a * u[t][j];
          out[t][j] += b * s[j];
        }
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
    FWM_EACH(t, TB) FWM_EACH(j, NV) store(y + t * ldv + j * w, out[t][j]);
  }
}

// c[i * TB + j] = a_i . b_j for j < i (or j <= i) of TB rows.
template <class F, int TB, bool Diagonal>
FWM_INLINE void couplings(Index E, const F* a, const F* b, Index ld, F* c) {
  constexpr int pairs = TB * (TB - 1) / 2 + (Diagonal ? TB : 0);
  constexpr int padded = pairs <= 1 ? 1 : pairs <= 4 ? 4 : pairs <= 8 ? 8 : 16;
  Vec<F> sums[padded];
  FWM_EACH(x, padded) sums[x] = Vec<F>{};
  for (Index e = 0; e < E; e += W<F>) {
    Vec<F> left[TB], right[TB];
    FWM_EACH(i, TB) {
      left[i] = load(a + i * ld + e);
      right[i] = load(b + i * ld + e);
    }
    int x = 0;
    FWM_EACH(i, TB) FWM_EACH(j, i + Diagonal) sums[x++] += left[i] * right[j];
  }
  F found[padded];
  totals<padded>(sums, found);
  int x = 0;
  FWM_EACH(i, TB) FWM_EACH(j, i + Diagonal) c[i * TB + j] = found[x++];
}

// out_t = S^T k_t of TB keys.
template <class F, int NV, int TB>
FWM_INLINE void retrieve(Index E, const F* k, Index ld, const F* S, Vec<F> (&out)[TB][NV]) {
  FWM_EACH(t, TB) FWM_EACH(j, NV) out[t][j] = Vec<F>{};
  for (Index i = 0; i < E; i++) {
    FWM_EACH(t, TB) {
      const Vec<F> a = spread(k[t * ld + i]);
      FWM_EACH(j, NV) out[t][j] += a * load(S + (i * NV + j) * W<F>);
    }
  }
}

// Delta rule: r_t = v_t - S^T k_t ; S <- S + k_t (x) beta_t r_t ; y_t = S^T q_t.
// A pass over S writes TB updates, reads for TB queries and retrieves for the next TB keys; what these
// keys miss of each other's updates comes from their inner products.
template <class F, int NV>
void delta_steps(Index n, Index E, Index padded_E, const F* q, const F* k, Index ld, const F* v,
                 const F* beta, F* y, F* r, Index ldv, F* S) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  Vec<F> retrieved[TB][NV];
  retrieve<F, NV, TB>(E, k, ld, S, retrieved);
  for (Index t0 = 0; t0 < n; t0 += TB) {
    F c[TB * TB];
    couplings<F, TB, false>(padded_E, k, k, ld, c);
    Vec<F> u[TB][NV], out[TB][NV];
    FWM_EACH(t, TB) {
      const Vec<F> b = spread(beta[t]);
      FWM_EACH(j, NV) {
        Vec<F> rest = load(v + t * ldv + j * w) - retrieved[t][j];
        FWM_EACH(s, t) rest -= spread(c[t * TB + s]) * u[s][j];
        store(r + t * ldv + j * w, rest);
        u[t][j] = b * rest;
        out[t][j] = retrieved[t][j] = Vec<F>{};
      }
    }
    const F* next = t0 + TB < n ? k + TB * ld : k;  // after the last steps nobody asks
    for (Index i = 0; i < E; i++) {
      F* row = S + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(k[t * ld + i]), b = spread(q[t * ld + i]);
        FWM_EACH(j, NV) {
          s[j] += a * u[t][j];
          out[t][j] += b * s[j];
        }
      }
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(next[t * ld + i]);
        FWM_EACH(j, NV) retrieved[t][j] += a * s[j];
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
    FWM_EACH(t, TB) FWM_EACH(j, NV) store(y + t * ldv + j * w, out[t][j]);
    k += TB * ld, q += TB * ld, v += TB * ldv, y += TB * ldv, r += TB * ldv, beta += TB;
  }
}

// Delta rule backward, the sequential part. Rows run backward in time; G is the gradient of S:
// G <- G + q_t (x) dy_t ; u_t = G^T k_t ; G <- G - k_t (x) beta_t u_t.
template <class F, int NV>
void delta_reverse_steps(Index n, Index E, Index padded_E, const F* q, const F* k, Index ld,
                         const F* dy, const F* beta, F* u, Index ldv, F* G) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  Vec<F> ahead[TB][NV];
  retrieve<F, NV, TB>(E, k, ld, G, ahead);
  for (Index t0 = 0; t0 < n; t0 += TB) {
    F kk[TB * TB], kq[TB * TB];
    couplings<F, TB, false>(padded_E, k, k, ld, kk);
    couplings<F, TB, true>(padded_E, k, q, ld, kq);
    Vec<F> g[TB][NV], dv[TB][NV];
    FWM_EACH(t, TB) FWM_EACH(j, NV) g[t][j] = load(dy + t * ldv + j * w);
    FWM_EACH(t, TB) {
      const Vec<F> b = spread(beta[t]);
      FWM_EACH(j, NV) {
        Vec<F> x = ahead[t][j];
        FWM_EACH(s, t + 1) x += spread(kq[t * TB + s]) * g[s][j];
        FWM_EACH(s, t) x -= spread(kk[t * TB + s]) * dv[s][j];
        store(u + t * ldv + j * w, x);
        dv[t][j] = b * x;
        ahead[t][j] = Vec<F>{};
      }
    }
    const F* next = t0 + TB < n ? k + TB * ld : k;
    for (Index i = 0; i < E; i++) {
      F* row = G + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(q[t * ld + i]), b = spread(k[t * ld + i]);
        FWM_EACH(j, NV) {
          s[j] += a * g[t][j];
          s[j] -= b * dv[t][j];
        }
      }
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(next[t * ld + i]);
        FWM_EACH(j, NV) ahead[t][j] += a * s[j];
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
    k += TB * ld, q += TB * ld, dy += TB * ldv, u += TB * ldv, beta += TB;
  }
}

// Delta rule backward, reading the gradient of S: dk_t = G u_t with G <- G + q_t dy_t^T before and
// G <- G - k_t dv_t^T after. Rows run backward in time; G is transposed: E rows of values.
template <class F, int NV>
void delta_key_steps(Index n, Index E, const F* u, const F* dy, const F* dv, Index ldv, const F* q,
                     const F* k, F* dk, Index ld, F* G) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  for (Index t0 = 0; t0 < n; t0 += TB) {
    Vec<F> query[TB][NV], key[TB][NV], out[TB][NV];
    FWM_EACH(t, TB) FWM_EACH(j, NV) {
      query[t][j] = load(q + t * ld + j * w);
      key[t][j] = load(k + t * ld + j * w);
      out[t][j] = Vec<F>{};
    }
    for (Index i = 0; i < E; i++) {
      F* row = G + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(dy[t * ldv + i]), b = spread(u[t * ldv + i]);
        const Vec<F> c = spread(dv[t * ldv + i]);
        FWM_EACH(j, NV) {
          s[j] += a * query[t][j];
          out[t][j] += b * s[j];
          s[j] -= c * key[t][j];
        }
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
    FWM_EACH(t, TB) FWM_EACH(j, NV) store(dk + t * ld + j * w, out[t][j]);
    u += TB * ldv, dy += TB * ldv, dv += TB * ldv, q += TB * ld, k += TB * ld, dk += TB * ld;
  }
}

// Delta rule backward, reading S again: dk_t = -S dv_t, then S <- S + k_t u_t^T, then dq_t = S dy_t.
// S is transposed: E rows of values.
template <class F, int NV>
void delta_query_steps(Index n, Index E, const F* u, const F* dy, const F* dv, Index ldv, const F* k,
                       F* dq, F* dk, Index ld, F* S) {
  constexpr int TB = kSteps<NV>, w = W<F>;
  for (Index t0 = 0; t0 < n; t0 += TB) {
    Vec<F> key[TB][NV], out_q[TB][NV], out_k[TB][NV];
    FWM_EACH(t, TB) FWM_EACH(j, NV) {
      key[t][j] = load(k + t * ld + j * w);
      out_q[t][j] = out_k[t][j] = Vec<F>{};
    }
    for (Index i = 0; i < E; i++) {
      F* row = S + i * NV * w;
      Vec<F> s[NV];
      FWM_EACH(j, NV) s[j] = load(row + j * w);
      FWM_EACH(t, TB) {
        const Vec<F> a = spread(u[t * ldv + i]), b = spread(dy[t * ldv + i]);
        const Vec<F> c = spread(dv[t * ldv + i]);
        FWM_EACH(j, NV) {
          out_k[t][j] -= c * s[j];
          s[j] += a * key[t][j];
          out_q[t][j] += b * s[j];
        }
      }
      FWM_EACH(j, NV) store(row + j * w, s[j]);
    }
    FWM_EACH(t, TB) FWM_EACH(j, NV) {
      store(dq + t * ld + j * w, out_q[t][j]);
      store(dk + t * ld + j * w, out_k[t][j]);
    }
    u += TB * ldv, dy += TB * ldv, dv += TB * ldv, k += TB * ld, dq += TB * ld, dk += TB * ld;
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
