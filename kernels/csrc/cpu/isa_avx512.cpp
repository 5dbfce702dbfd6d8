// AVX512.
#if defined(__x86_64__)
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "../problem.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,prefer-vector-width=512")
#endif
#define FWM_ISA avx512
#define FWM_VECTOR_BYTES 64
#define FWM_REGISTERS 32
#include "instantiate.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
