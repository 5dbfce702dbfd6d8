// bfloat16 and IEEE half as bits, with conversions that round to nearest even as CUDA's do: every
// NaN that is stored is CUDA's 0x7fff.
#pragma once

#include <cstdint>
#include <cstring>

inline std::uint32_t __float_as_uint(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<std::uint32_t>(bits)); }

namespace fwm {
namespace emulator {

// No arithmetic: kernels compute in float.
struct Bf16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

}  // namespace emulator
}  // namespace fwm

inline float __bfloat162float(fwm::emulator::Bf16 x) {
  return __uint_as_float(static_cast<std::uint32_t>(x.bits) << 16);
}
inline fwm::emulator::Bf16 __float2bfloat16(float x) {
  if (x != x) return {0x7fff};
  const std::uint32_t bits = __float_as_uint(x);
  const std::uint32_t to_even = 0x7fff + (bits >> 16 & 1);
  return {static_cast<std::uint16_t>((bits + to_even) >> 16)};
}

inline float __half2float(fwm::emulator::Half x) {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | magnitude << 13);
  // Exponents have another bias, 127 and not 15; a product with a power of two is exact, and makes
  // subnormal numbers right.
  const float scaled = __uint_as_float(magnitude << 13) * 0x1p112f;
  return __uint_as_float(sign | __float_as_uint(scaled));
}
inline fwm::emulator::Half __float2half(float x) {
  if (x != x) return {0x7fff};
  const std::uint32_t sign = __float_as_uint(x) >> 16 & 0x8000u;
  const std::uint32_t magnitude = __float_as_uint(x) & 0x7fffffffu;
  std::uint32_t bits;
  if (magnitude >= __float_as_uint(65520.0f)) {
    bits = 0x7c00;  // rounds to infinity
  } else if (magnitude < __float_as_uint(0x1p-14f)) {
    // Subnormal: in 0.5 + x, the last bit of the sum is the unit of the result.
    bits = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f);
  } else {
    const std::uint32_t to_even = 0xfff + (magnitude >> 13 & 1);
    bits = (magnitude + to_even - (112u << 23)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | bits)};
}
