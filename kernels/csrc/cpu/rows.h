// Rows between tensors of any storage dtype and padded scratch in the arithmetic's dtype.
#pragma once

#include "vec.h"

namespace fwm {
namespace FWM_ISA {

FWM_INLINE float bits_to_float(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
FWM_INLINE std::uint32_t float_to_bits(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

struct BFloat16 {
  std::uint16_t bits;
  FWM_INLINE operator float() const { return bits_to_float(std::uint32_t(bits) << 16); }
  static FWM_INLINE BFloat16 from(float x) {
    const std::uint32_t b = float_to_bits(x);
    const std::uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;  // to nearest even
    return {std::uint16_t(x != x ? 0x7fc0 : rounded)};
  }
};

struct Float16 {
  std::uint16_t bits;
  FWM_INLINE operator float() const {
    const std::uint32_t sign = std::uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
    // Moving the exponent's bias by a product serves subnormal numbers too.
    const std::uint32_t finite = float_to_bits(bits_to_float(rest << 13) * 0x1p112f);
    return bits_to_float(sign | (rest >= 0x7c00 ? 0x7f800000u | rest << 13 : finite));
  }
  static FWM_INLINE Float16 from(float x) {
    const std::uint32_t b = float_to_bits(x), sign = b >> 16 & 0x8000, size = b & 0x7fffffff;
    // Adding 0.5 puts a subnormal's last bit where fp32 rounds.
    const std::uint32_t subnormal = float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000;
    const std::uint32_t normal = (size + 0xfff + ((size >> 13) & 1) - (112u << 23)) >> 13;
    const std::uint32_t finite = size < 0x38800000 ? subnormal : size < 0x477ff000 ? normal : 0x7c00;
    return {std::uint16_t(sign | (size > 0x7f800000 ? 0x7e00 : finite))};
  }
};

// to[0, width) = from[0, width), then zeros up to `padded`.
template <class F>
FWM_INLINE void load_same(F* to, const F* from, Index width, Index padded) {
  Index i = 0;
  for (; i + W<F> <= width; i += W<F>) store(to + i, load(from + i));
  if (i < width) {
    for (; i < width; i++) to[i] = from[i];
  }
  for (; i < padded; i++) to[i] = 0;
}
template <class F>
FWM_INLINE void store_same(F* to, const F* from, Index width) {
  Index i = 0;
  for (; i + W<F> <= width; i += W<F>) store(to + i, load(from + i));
  for (; i < width; i++) to[i] = from[i];
}
template <class F, class Half>
FWM_INLINE void load_half(F* to, const Half* from, Index width, Index padded) {
  Index i = 0;
  for (; i < width; i++) to[i] = F(float(from[i]));
  for (; i < padded; i++) to[i] = 0;
}
template <class F, class Half>
FWM_INLINE void store_half(Half* to, const F* from, Index width) {
  for (Index i = 0; i < width; i++) to[i] = Half::from(float(from[i]));
}

template <class F>
inline void load_row(F* to, const void* base, Index offset, DType dtype, Index width, Index padded) {
  if (dtype == DType::bf16) {
    load_half(to, static_cast<const BFloat16*>(base) + offset, width, padded);
  } else if (dtype == DType::f16) {
    load_half(to, static_cast<const Float16*>(base) + offset, width, padded);
  } else {
    load_same(to, static_cast<const F*>(base) + offset, width, padded);
  }
}
template <class F>
inline void store_row(void* base, Index offset, DType dtype, const F* from, Index width) {
  if (dtype == DType::bf16) {
    store_half(static_cast<BFloat16*>(base) + offset, from, width);
  } else if (dtype == DType::f16) {
    store_half(static_cast<Float16*>(base) + offset, from, width);
  } else {
    store_same(static_cast<F*>(base) + offset, from, width);
  }
}

// The rows of one head, by time.
struct HeadRows {
  void* data;
  Index offset, stride;
  DType dtype;

  HeadRows(const Rows& rows, Index n, Index h, DType dtype)
      : data(rows.data), offset(n * rows.n + h * rows.h), stride(rows.t), dtype(dtype) {}
  template <class F>
  void load(F* to, Index t, Index width, Index padded) const {
    load_row(to, data, offset + t * stride, dtype, width, padded);
  }
  template <class F>
  void store(Index t, const F* from, Index width) const {
    store_row(data, offset + t * stride, dtype, from, width);
  }
  // Ask the memory for rows first, first + step, ... (count of them).
  void prefetch(Index first, Index step, Index count, Index width) const {
    const Index size = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2, bytes = width * size;
    const char* row = static_cast<const char*>(data) + (offset + first * stride) * size;
    const Index jump = step * stride * size;
    for (Index i = 0; i < count; i++, row += jump) {
      for (Index line = 0; line < bytes; line += 64) __builtin_prefetch(row + line);
    }
  }
};

}  // namespace FWM_ISA
}  // namespace fwm
