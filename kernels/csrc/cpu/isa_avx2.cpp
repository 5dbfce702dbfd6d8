// AVX2.
#if defined(__x86_64__)
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "../problem.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FWM_ISA avx2
#define FWM_VECTOR_BYTES 32
#define FWM_REGISTERS 16
#include "instantiate.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
