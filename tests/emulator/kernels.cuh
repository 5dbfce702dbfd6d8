// Kernels without mistakes for tests of the emulator. nvcc compiles them too: test_emulator.py.
#pragma once

#include "cuda/mma.cuh"

namespace fwm {
namespace gpu {

// What a test hands over: two arrays, and how many elements there are in each.
struct Arrays {
  void* in;
  void* out;
  int n;

  template <class T>
  const T* from() const {
    return static_cast<const T*>(in);
  }
  template <class T>
  T* to() const {
    return static_cast<T*>(out);
  }
};

// ---- Barriers -----------------------------------------------------------------------------------

__global__ void __launch_bounds__(64) reverse(const float* __restrict__ in, float* out) {
  SharedMemory shared;
  float* row = shared.take<float>(64);
  const int i = threadIdx.x;
  row[i] = in[blockIdx.x * 64 + i];
  __syncthreads();
  out[blockIdx.x * 64 + i] = row[63 - i];
}
void run_reverse(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(reverse, a.n / 64, 64, shared_bytes<float>(64), stream, a.from<float>(),
                 a.to<float>());
}

__global__ void swap_in_warp(const float* in, float* out) {
  SharedMemory shared;
  float* row = shared.take<float>(64);
  const int i = threadIdx.x;
  row[i] = in[i];
  __syncwarp();
  out[i] = row[i ^ 1];
}
void run_swap_in_warp(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(swap_in_warp, 1, 64, shared_bytes<float>(64), stream, a.from<float>(),
                 a.to<float>());
}

// The two halves of a warp, each on its own.
__global__ void swap_in_halves(const float* in, float* out) {
  SharedMemory shared;
  float* row = shared.take<float>(32);
  const int i = threadIdx.x;
  const unsigned mask = i < 16 ? 0x0000ffffu : 0xffff0000u;
  row[i] = in[i];
  __syncwarp(mask);
  out[i] = row[i ^ 1] + __shfl_xor_sync(mask, in[i], 2, 16);
  __syncwarp(mask);
  row[i ^ 3] = 0.0f;
}
void run_swap_in_halves(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(swap_in_halves, 1, 32, shared_bytes<float>(32), stream, a.from<float>(),
                 a.to<float>());
}

__global__ void number_blocks(float* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * 12 + thread] = block + 0.01f * thread;
}
void run_number_blocks(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(number_blocks, dim3(2, 3, 2), dim3(3, 2, 2), 0, stream, a.to<float>());
}

// ---- Shuffles -----------------------------------------------------------------------------------

// Four results for every lane, in rows of 32.
__global__ void shuffles(const float* in, float* out, int operand, int width) {
  const int lane = threadIdx.x;
  const float x = in[lane];
  out[lane] = __shfl_sync(0xffffffffu, x, operand, width);
  out[32 + lane] = __shfl_xor_sync(0xffffffffu, x, operand, width);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, x, operand, width);
  out[96 + lane] = __shfl_up_sync(0xffffffffu, x, operand, width);
}
void run_shuffles(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(shuffles, 1, 32, 0, stream, a.from<float>(), a.to<float>(), a.n / 100,
                 a.n % 100);
}

// ---- Storage types ------------------------------------------------------------------------------

template <class T>
__global__ void widen(const T* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = to_float(in[i]);
}
template <class T>
__global__ void narrow(const float* in, T* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = from_float<T>(in[i]);
}
template <class T>
void run_widen(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(widen<T>, (a.n + 255) / 256, 256, 0, stream, a.from<T>(), a.to<float>(), a.n);
}
template <class T>
void run_narrow(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(narrow<T>, (a.n + 255) / 256, 256, 0, stream, a.from<float>(), a.to<T>(), a.n);
}

// ---- Vectors and asynchronous copies ------------------------------------------------------------

// Backwards, through shared memory, by vectors of four.
__global__ void copy_vectors(const float* in, float* out) {
  SharedMemory shared;
  float4* row = shared.take<float4>(32);
  const int i = threadIdx.x;
  row[i] = reinterpret_cast<const float4*>(in)[i];
  __syncwarp();
  float4 mine = row[31 - i];
  mine.w = -mine.w;
  reinterpret_cast<float4*>(out)[i] = mine;
}
void run_copy_vectors(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(copy_vectors, 1, 32, shared_bytes<float4>(32), stream, a.from<float>(),
                 a.to<float>());
}

// The neighbour's numbers, by copies of 16, 8 or 4 bytes; in the second half of `out`, what this
// thread's own place held before it waited for the copy.
template <int bytes>
__global__ void copy_ahead(const float* in, float* out) {
  constexpr int each = bytes / sizeof(float);
  SharedMemory shared;
  float* row = shared.take<float>(64 * each);
  const int i = threadIdx.x;
  copy_async(row + i * each, in + i * each, bytes);
  out[64 * each + i] = row[i * each];
  copy_async_wait_all();
  __syncthreads();
  for (int k = 0; k < each; k++) out[i * each + k] = row[(i ^ 1) * each + k];
}
template <int bytes>
void run_copy_ahead(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(copy_ahead<bytes>, 1, 64, shared_bytes<float>(64 * bytes / 4), stream,
                 a.from<float>(), a.to<float>());
}

// ---- Memory -------------------------------------------------------------------------------------

template <int pitch>
__global__ void transpose(const float* in, float* out) {
  SharedMemory shared;
  float* tile = shared.take<float>(32 * pitch);
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  for (int r = y; r < 32; r += 4) tile[r * pitch + x] = in[r * 32 + x];
  __syncthreads();
  for (int r = y; r < 32; r += 4) {
    const float value = tile[x * pitch + r];
    out[r * 32 + x] = value;
  }
}
template <int pitch>
void run_transpose(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(transpose<pitch>, 1, 128, shared_bytes<float>(32 * pitch), stream,
                 a.from<float>(), a.to<float>());
}

// Every eighth number: a sector for each.
__global__ void gather(const float* in, float* out) {
  const float value = in[threadIdx.x * 8];
  out[threadIdx.x] = value;
}
void run_gather(const Arrays& a, cudaStream_t stream) {
  FWM_GPU_LAUNCH(gather, 1, 64, 0, stream, a.from<float>(), a.to<float>());
}

// ---- Tensor cores -------------------------------------------------------------------------------

template <class T>
struct Operands {
  using type = T;
  static constexpr int depth = 16;
};
template <>
struct Operands<float> {
  using type = wmma::precision::tf32;
  static constexpr int depth = 8;
};

template <class Fragment>
__device__ void round_elements(Fragment&, Bf16) {}
template <class Fragment>
__device__ void round_elements(Fragment&, Half) {}
template <class Fragment>
__device__ void round_elements(Fragment& fragment, float) {
  for (int i = 0; i < fragment.num_elements; i++) {
    fragment.x[i] = wmma::__float_to_tf32(fragment.x[i]);
  }
}

// out = 2 (in_A in_B + out) for one tile of 16 x 16; A and B are 16 x depth and depth x 16, one
// after the other, each by rows or by columns; out is read by columns and written by rows.
template <class T, class LayoutA, class LayoutB, int padding>
__global__ void product(const T* in, float* out) {
  using Number = typename Operands<T>::type;
  constexpr int depth = Operands<T>::depth;
  constexpr bool a_rows = std::is_same<LayoutA, wmma::row_major>::value;
  constexpr bool b_rows = std::is_same<LayoutB, wmma::row_major>::value;
  constexpr int a_leading = (a_rows ? depth : 16) + padding;
  constexpr int b_leading = (b_rows ? 16 : depth) + padding;
  SharedMemory shared;
  T* a_tile = shared.take<T>(16 * (16 + padding));
  T* b_tile = shared.take<T>(16 * (16 + padding));
  const int lane = threadIdx.x;
  for (int i = lane; i < 16 * depth; i += 32) {
    const int a_length = a_leading - padding, b_length = b_leading - padding;
    a_tile[i / a_length * a_leading + i % a_length] = in[i];
    b_tile[i / b_length * b_leading + i % b_length] = in[16 * depth + i];
  }
  __syncwarp();
  wmma::fragment<wmma::matrix_a, 16, 16, depth, Number, LayoutA> a;
  wmma::fragment<wmma::matrix_b, 16, 16, depth, Number, LayoutB> b;
  wmma::fragment<wmma::accumulator, 16, 16, depth, float> c;
  wmma::load_matrix_sync(a, a_tile, a_leading);
  wmma::load_matrix_sync(b, b_tile, b_leading);
  wmma::load_matrix_sync(c, out, 16, wmma::mem_col_major);
  round_elements(a, T());
  round_elements(b, T());
  wmma::mma_sync(c, a, b, c);
  for (int i = 0; i < c.num_elements; i++) c.x[i] *= 2.0f;
  __syncwarp();
  wmma::store_matrix_sync(out, c, 16, wmma::mem_row_major);
}
template <class T, class LayoutA, class LayoutB, int padding>
void run_product(const Arrays& a, cudaStream_t stream) {
  constexpr std::size_t bytes = 2 * shared_bytes<T>(16 * (16 + padding));
  FWM_GPU_LAUNCH((product<T, LayoutA, LayoutB, padding>), 1, 32, bytes, stream, a.from<T>(),
                 a.to<float>());
}

// ---- By name ------------------------------------------------------------------------------------

struct Kernel {
  const char* name;
  void (*run)(const Arrays&, cudaStream_t);
};

using Rows = wmma::row_major;
using Columns = wmma::col_major;

constexpr Kernel kernels[] = {
    {"reverse", &run_reverse},
    {"swap_in_warp", &run_swap_in_warp},
    {"swap_in_halves", &run_swap_in_halves},
    {"number_blocks", &run_number_blocks},
    {"shuffles", &run_shuffles},
    {"widen bf16", &run_widen<Bf16>},
    {"widen half", &run_widen<Half>},
    {"narrow bf16", &run_narrow<Bf16>},
    {"narrow half", &run_narrow<Half>},
    {"copy_vectors", &run_copy_vectors},
    {"copy_ahead 16", &run_copy_ahead<16>},
    {"copy_ahead 8", &run_copy_ahead<8>},
    {"copy_ahead 4", &run_copy_ahead<4>},
    {"transpose 32", &run_transpose<32>},
    {"transpose 33", &run_transpose<33>},
    {"gather", &run_gather},
    {"product bf16 rows rows", &run_product<Bf16, Rows, Rows, 0>},
    {"product bf16 rows columns", &run_product<Bf16, Rows, Columns, 0>},
    {"product bf16 columns rows", &run_product<Bf16, Columns, Rows, 0>},
    {"product bf16 columns columns", &run_product<Bf16, Columns, Columns, 0>},
    {"product half rows rows", &run_product<Half, Rows, Rows, 0>},
    {"product half rows columns", &run_product<Half, Rows, Columns, 0>},
    {"product half columns rows", &run_product<Half, Columns, Rows, 0>},
    {"product half columns columns", &run_product<Half, Columns, Columns, 0>},
    {"product tf32 rows rows", &run_product<float, Rows, Rows, 0>},
    {"product tf32 rows columns", &run_product<float, Rows, Columns, 0>},
    {"product tf32 columns rows", &run_product<float, Columns, Rows, 0>},
    {"product tf32 columns columns", &run_product<float, Columns, Columns, 0>},
    {"product bf16 padded", &run_product<Bf16, Rows, Columns, 8>},
};

}  // namespace gpu
}  // namespace fwm
