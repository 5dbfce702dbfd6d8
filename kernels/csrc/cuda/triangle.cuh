// The inverse of a unit lower triangular matrix in shared memory.
#pragma once

#include "matrix.cuh"

namespace fwm {
namespace gpu {

// inverse = (I - n)^-1, where n (C, C) has nothing on its diagonal and above. Tiles on the diagonal by
// substitution, one thread per column; what is left of them by products, one row of tiles after the
// other: X_bj = X_bb sum_m n_bm X_mj. `scratch` holds a row of tiles.
__device__ __forceinline__ void invert_triangle(const Matrix<float>& inverse, const Matrix<float>& n,
                                                const Matrix<float>& scratch, int C) {
  for (int j = threadIdx.x; j < C; j += blockDim.x) {
    const int first = j / kTile * kTile;
    for (int i = 0; i < first; i++) inverse.at(i, j) = 0.0f;
    for (int i = first; i < first + kTile; i++) {
      float x = i == j ? 1.0f : 0.0f;
      for (int m = j; m < i; m++) x += n.at(i, m) * inverse.at(m, j);
      inverse.at(i, j) = x;
    }
  }
  __syncthreads();
  for (int first = kTile; first < C; first += kTile) {
    const Matrix<float> row{n.row(first), n.ld}, out{inverse.row(first), inverse.ld};
    const Matrix<float> diagonal{out.data + first, out.ld};
    for_tiles<float>(scratch, kTile, first, false, [&](Sum<float>& sum, int, int j) {
      multiply_add<Product::AB>(sum, row, 0, inverse, j, first);
    });
    __syncthreads();
    for_tiles<float>(out, kTile, first, false, [&](Sum<float>& sum, int, int j) {
      multiply_add<Product::AB>(sum, diagonal, 0, scratch, j, kTile);
    });
    __syncthreads();
  }
}

}  // namespace gpu
}  // namespace fwm
