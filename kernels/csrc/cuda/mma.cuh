// Tensor cores, through CUDA's portable interface: fwm::gpu::wmma is nvcuda::wmma. The emulator has
// the products that the kernels use, with float accumulators:
//
//     m16n16k16   Bf16 or Half
//     m16n16k8    precision::tf32; elements are floats that __float_to_tf32 has rounded
//
// Tiles start at multiples of 32 bytes; rows lie a multiple of 16 bytes apart. Loads and stores
// order no memory: lanes see each other's tiles after __syncwarp(), warps after __syncthreads().
#pragma once

#include "gpu.cuh"

#if defined(__CUDACC__)
#include <mma.h>
#else
#include "wmma.h"
#endif

namespace fwm {
namespace gpu {

namespace wmma = nvcuda::wmma;

}  // namespace gpu
}  // namespace fwm
