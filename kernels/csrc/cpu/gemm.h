// Small matrix products on padded scratch: row-major, columns a multiple of the vector width.
#pragma once

#include "vec.h"

namespace fwm {
namespace FWM_ISA {

// What C = A B is for: set C, add to it or subtract from it.
enum class Into { set, add, subtract };

// A(m, k) = A[m * am + k * ak].
template <class F, int MR, int NV, Into into>
FWM_INLINE void product_tile(Index K, const F* A, Index am, Index ak, const F* B, Index ldb, F* C,
                             Index ldc) {
  Vec<F> sum[MR][NV];
  FWM_EACH(m, MR) FWM_EACH(j, NV) {
    sum[m][j] = into == Into::set ? Vec<F>{} : load(C + m * ldc + j * W<F>);
  }
  for (Index k = 0; k < K; k++) {
    Vec<F> b[NV];
    FWM_EACH(j, NV) b[j] = load(B + k * ldb + j * W<F>);
    FWM_EACH(m, MR) {
      const Vec<F> a = spread(A[m * am + k * ak]);
      FWM_EACH(j, NV) {
        if constexpr (into == Into::subtract) {
          sum[m][j] -= a * b[j];
        } else {
          sum[m][j] += a * b[j];
        }
      }
    }
  }
  FWM_EACH(m, MR) FWM_EACH(j, NV) store(C + m * ldc + j * W<F>, sum[m][j]);
}

template <class F, int NV, Into into>
FWM_INLINE void product_panel(Index M, Index K, const F* A, Index am, Index ak, const F* B,
                              Index ldb, F* C, Index ldc) {
  constexpr int MR = FWM_REGISTERS == 32 ? 8 : 4;
  Index m = 0;
  for (; m + MR <= M; m += MR) {
    product_tile<F, MR, NV, into>(K, A + m * am, am, ak, B, ldb, C + m * ldc, ldc);
  }
  for (; m < M; m++) {
    product_tile<F, 1, NV, into>(K, A + m * am, am, ak, B, ldb, C + m * ldc, ldc);
  }
}

template <Into into, class F>
void product(Index M, Index N, Index K, const F* A, Index am, Index ak, const F* B, Index ldb, F* C,
             Index ldc) {
  Index n = 0;
  for (; n + 2 * W<F> <= N; n += 2 * W<F>) {
    product_panel<F, 2, into>(M, K, A, am, ak, B + n, ldb, C + n, ldc);
  }
  if (n < N) product_panel<F, 1, into>(M, K, A, am, ak, B + n, ldb, C + n, ldc);
}

// to (columns, rows) = from (rows, columns)^T; both multiples of the vector width.
template <class F>
void transpose(Index rows, Index columns, const F* from, Index ldf, F* to, Index ldt) {
  constexpr int w = W<F>;
  for (Index i = 0; i < rows; i += w) {
    for (Index j = 0; j < columns; j += w) {
      Vec<F> tile[w], mixed[w];
      FWM_EACH(x, w) tile[x] = load(from + (i + x) * ldf + j);
      FWM_UNROLL for (int round = 1; round < w; round *= 2) {
        FWM_EACH(x, w / 2) {
          mixed[2 * x] = interleave<0>(tile[x], tile[x + w / 2], F());
          mixed[2 * x + 1] = interleave<1>(tile[x], tile[x + w / 2], F());
        }
        FWM_EACH(x, w) tile[x] = mixed[x];
      }
      FWM_EACH(x, w) store(to + (j + x) * ldt + i, tile[x]);
    }
  }
}

}  // namespace FWM_ISA
}  // namespace fwm
