// Kernels with one mistake each, which the emulator has to find: test_emulator.py.
#pragma once

#include <stdexcept>

#include "kernels.cuh"

namespace fwm {
namespace gpu {

// ---- Barriers and shuffles that do not fit together ---------------------------------------------

__global__ void divergent_barriers(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 1.0f;
    __syncthreads();
  }
}

__global__ void early_return(float* out, unsigned first, unsigned last) {
  if (threadIdx.x >= first && threadIdx.x < last) return;
  __syncthreads();
  out[threadIdx.x] = 1.0f;
}

__global__ void not_in_own_mask(float* out) { out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 0); }

__global__ void absent_lanes(float* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void lanes_return(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void two_places(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 2.0f, 1);
  }
}

__global__ void outside_mask(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

__global__ void odd_width(float* out) { out[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0f, 0, 5); }

__global__ void deadlock(float* out) {
  if (threadIdx.x < 16) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}

__global__ void throws(float* out) {
  out[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 7) throw std::runtime_error("thrown by thread 7");
  __syncthreads();
}

// ---- Copies and tiles ---------------------------------------------------------------------------

__global__ void copy_of(const float* in, int offset, int bytes, bool to_shared, bool wait) {
  SharedMemory shared;
  float* row = shared.take<float>(64);
  float* to = to_shared ? row : const_cast<float*>(in) + 32;
  copy_async(to + offset, in, bytes);
  if (wait) copy_async_wait_all();
}

__global__ void tile_at(const float* in, int offset, int leading, bool same) {
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> tile;
  const float* start = in + offset + (same ? 0 : 8 * (threadIdx.x / 16));
  wmma::load_matrix_sync(tile, start, leading, wmma::mem_row_major);
}

// ---- Races --------------------------------------------------------------------------------------

// All blocks write one place; or a place each.
__global__ void across_blocks(float* out, bool apart) {
  if (threadIdx.x == 0) out[apart ? blockIdx.x : 0] = 1.0f;
}

// Every block reads the place that the last one writes after a barrier of its own.
__global__ void late_write(float* out, bool apart) {
  float value = out[0];
  __syncthreads();
  if (blockIdx.x + 1 == gridDim.x && threadIdx.x == 0) {
    out[apart ? 1 : 0] = value;
  }
}

// Warps 0, 1, 2 read; then warp 0 writes, which has been the first to read.
__global__ void third_reader(float* out, bool barrier) {
  SharedMemory shared;
  float* place = shared.take<float>(1);
  if (threadIdx.x == 0) place[0] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = place[0];
  if (barrier) __syncthreads();
  if (threadIdx.x == 0) place[0] = 2.0f;
}

// Lanes exchange by a shuffle, which orders no memory.
__global__ void shuffle_is_no_barrier(const float* in, float* out) {
  SharedMemory shared;
  float* row = shared.take<float>(32);
  const int i = threadIdx.x;
  row[i] = in[i];
  out[i] = __shfl_xor_sync(0xffffffffu, in[i], 1);
  out[i] += row[i ^ 1];
}

// A barrier of half a warp does not order the other half.
__global__ void wrong_half(const float* in, float* out) {
  SharedMemory shared;
  float* row = shared.take<float>(32);
  const int i = threadIdx.x;
  row[i] = in[i];
  __syncwarp(i < 16 ? 0x0000ffffu : 0xffff0000u);
  out[i] = row[i ^ 16];
}

__global__ void reads_unwritten(float* out) {
  SharedMemory shared;
  float* row = shared.take<float>(64);
  if (threadIdx.x != 5) row[threadIdx.x] = 1.0f;
  out[threadIdx.x] = row[threadIdx.x];
}

__global__ void copy_without_barrier(const float* in, float* out) {
  SharedMemory shared;
  float* row = shared.take<float>(64);
  copy_async(row + threadIdx.x, in + threadIdx.x, 4);
  copy_async_wait_all();
  out[threadIdx.x] = row[threadIdx.x ^ 1];
}

__global__ void tile_without_barrier(float* out) {
  SharedMemory shared;
  float* tile = shared.take<float>(256);
  for (int i = threadIdx.x; i < 256; i += 32) tile[i] = static_cast<float>(i);
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> c;
  wmma::load_matrix_sync(c, tile, 16, wmma::mem_row_major);
  __syncwarp();
  wmma::store_matrix_sync(out, c, 16, wmma::mem_row_major);
}

// ---- Bounds and alignment -----------------------------------------------------------------------

// The first element after `in`, and after the first of two shared arrays.
__global__ void beyond(const float* in, float* out, int global, int shared_place) {
  SharedMemory shared;
  float* first = shared.take<float>(60);
  float* second = shared.take<float>(64);
  first[threadIdx.x % 60] = second[threadIdx.x] = 0.0f;
  __syncthreads();
  if (threadIdx.x == 3) {
    out[0] = in[global];
    first[shared_place] = 1.0f;
  }
}

__global__ void misaligned(const float* in, float* out, int offset) {
  const float4 value = *reinterpret_cast<const float4*>(in + offset);
  out[threadIdx.x] = value.x + value.w;
}

__global__ void local_array(const float* in, float* out, int last) {
  float numbers[4];
  for (int i = 0; i <= last; i++) numbers[i] = in[i];
  out[threadIdx.x] = numbers[0] + numbers[3];
}

// The order in which threads ran: a race, on purpose.
__global__ void record_order(float* out, int total) {
  const int place = static_cast<int>(out[total]);
  out[place] = static_cast<float>(blockIdx.x * blockDim.x + threadIdx.x);
  out[total] = static_cast<float>(place + 1);
}

}  // namespace gpu
}  // namespace fwm
