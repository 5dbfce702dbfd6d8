// Products of small matrices in shared memory by tensor cores, with fp32 sums.
#pragma once

#include "mma.cuh"
#include "tile.cuh"

namespace fwm {
namespace gpu {

// How tensor cores take operands of type E: bf16 and fp16 as they are, float rounded to tf32.
template <class E>
struct Tensor16 {
  using Type = E;
  static constexpr int kDepth = 16;
};
template <>
struct Tensor16<float> {
  using Type = wmma::precision::tf32;
  static constexpr int kDepth = 8;
};

constexpr int kTile = 16;

// Row-major, in shared memory. Rows are padded by 16 bytes, so that they start in different banks.
template <class E>
struct Matrix {
  E* data;
  int ld;

  __host__ __device__ static int padded(int columns) { return columns + int(16 / sizeof(E)); }
  __host__ __device__ static std::size_t bytes(int rows, int columns) {
    return shared_bytes<E>(rows * padded(columns));
  }
  __device__ static Matrix take(SharedMemory& shared, int rows, int columns) {
    return {shared.take<E>(rows * padded(columns)), padded(columns)};
  }
  __device__ __forceinline__ E* row(int i) const { return data + i * ld; }
  __device__ __forceinline__ E& at(int i, int j) const { return data[i * ld + j]; }
};

template <class E>
using Sum = wmma::fragment<wmma::accumulator, kTile, kTile, Tensor16<E>::kDepth, float>;

// sum += the tile (m, n) of A B, of A^T B or of A B^T; `inner` is the depth of the product.
enum class Product { AB, AtB, ABt };

template <Product product, class E>
__device__ __forceinline__ void multiply_add(Sum<E>& sum, const Matrix<E>& a, int m, const Matrix<E>& b,
                                             int n, int inner) {
  constexpr int D = Tensor16<E>::kDepth;
  constexpr bool tA = product == Product::AtB, tB = product == Product::ABt;
  using Type = typename Tensor16<E>::Type;
  using ByRows = wmma::row_major;
  using ByColumns = wmma::col_major;
  wmma::fragment<wmma::matrix_a, kTile, kTile, D, Type, std::conditional_t<tA, ByColumns, ByRows>> x;
  wmma::fragment<wmma::matrix_b, kTile, kTile, D, Type, std::conditional_t<tB, ByColumns, ByRows>> y;
  const E* from_a = a.data + (tA ? m * kTile : m * kTile * a.ld);
  const E* from_b = b.data + (tB ? n * kTile * b.ld : n * kTile);
  for (int i = 0; i < inner; i += D) {
    wmma::load_matrix_sync(x, from_a + (tA ? i * a.ld : i), a.ld);
    wmma::load_matrix_sync(y, from_b + (tB ? i : i * b.ld), b.ld);
    if constexpr (std::is_same<E, float>::value) {
#pragma unroll
      for (int j = 0; j < x.num_elements; j++) x.x[j] = wmma::__float_to_tf32(x.x[j]);
#pragma unroll
      for (int j = 0; j < y.num_elements; j++) y.x[j] = wmma::__float_to_tf32(y.x[j]);
    }
    wmma::mma_sync(sum, x, y, sum);
  }
}

// Call run(sum, m, n) for the tiles of a matrix, shared out over the warps, and store the sums; they
// start from zero or, with `add`, from what is there.
template <class E, class Run>
__device__ __forceinline__ void for_tiles(const Matrix<float>& out, int rows, int columns, bool add,
                                          Run run) {
  const int across = columns / kTile, tiles = rows / kTile * across;
  for (int i = threadIdx.x / 32; i < tiles; i += blockDim.x / 32) {
    const int m = i / across, n = i % across;
    float* tile = out.row(m * kTile) + n * kTile;
    Sum<E> sum;
    if (add) {
      wmma::load_matrix_sync(sum, tile, out.ld, wmma::mem_row_major);
    } else {
      wmma::fill_fragment(sum, 0.0f);
    }
    run(sum, m, n);
    wmma::store_matrix_sync(tile, sum, out.ld, wmma::mem_row_major);
  }
}

// A matrix of fp32 sums that is also an operand: for float the same numbers, else a rounded copy.
template <class E>
struct Summed {
  Matrix<float> sum;
  Matrix<E> operand;

  __host__ __device__ static std::size_t bytes(int rows, int columns) {
    return Matrix<float>::bytes(rows, columns) +
           (kCopies ? Matrix<E>::bytes(rows, columns) : std::size_t(0));
  }
  __device__ static Summed take(SharedMemory& shared, int rows, int columns) {
    Summed s;
    s.sum = Matrix<float>::take(shared, rows, columns);
    if constexpr (kCopies) {
      s.operand = Matrix<E>::take(shared, rows, columns);
    } else {
      s.operand = s.sum;
    }
    return s;
  }
  // Where the operand is the sum itself, whoever reads it must be through before it changes.
  __device__ __forceinline__ static void sync_readers() {
    if constexpr (!kCopies) __syncthreads();
  }
  // What a thread has written itself needs no barrier before; others read the operand after the next one.
  __device__ void round(int rows, int columns) const {
    if constexpr (kCopies) {
      for_elements(rows, columns, [&](int i, int j) { operand.at(i, j) = from_float<E>(sum.at(i, j)); });
    }
  }

 private:
  static constexpr bool kCopies = !std::is_same<E, float>::value;
};

}  // namespace gpu
}  // namespace fwm
