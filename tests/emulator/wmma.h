// nvcuda::wmma, as far as the kernels use it. See kernels/csrc/cuda/mma.cuh.
#pragma once

#include "matrix.h"

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

namespace detail {

using fwm::emulator::Bf16;
using fwm::emulator::Half;
using fwm::emulator::Number;
using fwm::emulator::Operand;
using fwm::emulator::Site;
using fwm::emulator::Tile;

template <class T>
struct Element;  // what a fragment stores, and the depth of its products
template <>
struct Element<Bf16> {
  using type = Bf16;
  static constexpr Number number = Number::bf16;
  static constexpr int depth = 16;
};
template <>
struct Element<Half> {
  using type = Half;
  static constexpr Number number = Number::half;
  static constexpr int depth = 16;
};
template <>
struct Element<precision::tf32> {
  using type = float;
  static constexpr Number number = Number::tf32;
  static constexpr int depth = 8;
};
template <>
struct Element<float> {
  using type = float;
  static constexpr Number number = Number::float32;
  static constexpr int depth = 0;  // of accumulators: that of their product
};

template <class Use>
constexpr Operand operand = std::is_same<Use, matrix_a>::value   ? Operand::a
                            : std::is_same<Use, matrix_b>::value ? Operand::b
                                                                 : Operand::accumulator;

template <class Use, int m, int n, int k, class T>
constexpr bool exists() {
  if (operand<Use> == Operand::accumulator) {
    return m == 16 && n == 16 && (k == 8 || k == 16) && std::is_same<T, float>::value;
  }
  return m == 16 && n == 16 && k == Element<T>::depth;
}

}  // namespace detail

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
  static_assert(detail::exists<Use, m, n, k, T>(), "the emulator has no such matrix product");
  static constexpr detail::Tile tile = {
      detail::operand<Use>, detail::Element<T>::number,
      detail::operand<Use> == detail::Operand::b ? k : m,
      detail::operand<Use> == detail::Operand::a ? k : n};
  static constexpr int num_elements = tile.rows * tile.columns / 32;
  typename detail::Element<T>::type x[num_elements];
};

inline float __float_to_tf32(float x) {
  if (x != x) return x;
  return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);  // nearest, ties away
}

template <class Fragment, class T>
__forceinline__ void fill_fragment(Fragment& fragment, T value) {
  for (auto& element : fragment.x) element = value;
}

template <class Use, int m, int n, int k, class T, class Layout>
__forceinline__ void load_matrix_sync(
    fragment<Use, m, n, k, T, Layout>& to, const typename detail::Element<T>::type* memory,
    unsigned leading, detail::Site site = detail::Site::here()) {
  static_assert(!std::is_void<Layout>::value, "accumulators are loaded with a layout");
  const bool by_columns = std::is_same<Layout, col_major>::value;
  auto* address = const_cast<typename detail::Element<T>::type*>(memory);
  fwm::emulator::access_tile({to.tile, address, leading, by_columns, false, to.x}, site);
}
template <int m, int n, int k>
__forceinline__ void load_matrix_sync(fragment<accumulator, m, n, k, float>& to,
                                      const float* memory, unsigned leading, layout_t layout,
                                      detail::Site site = detail::Site::here()) {
  const bool by_columns = layout == mem_col_major;
  auto* address = const_cast<float*>(memory);
  fwm::emulator::access_tile({to.tile, address, leading, by_columns, false, to.x}, site);
}
template <int m, int n, int k>
__forceinline__ void store_matrix_sync(float* memory,
                                       const fragment<accumulator, m, n, k, float>& from,
                                       unsigned leading, layout_t layout,
                                       detail::Site site = detail::Site::here()) {
  const bool by_columns = layout == mem_col_major;
  auto* elements = const_cast<float*>(from.x);
  fwm::emulator::access_tile({from.tile, memory, leading, by_columns, true, elements}, site);
}

template <int m, int n, int k, class T, class LayoutA, class LayoutB>
__forceinline__ void mma_sync(fragment<accumulator, m, n, k, float>& d,
                              const fragment<matrix_a, m, n, k, T, LayoutA>& a,
                              const fragment<matrix_b, m, n, k, T, LayoutB>& b,
                              const fragment<accumulator, m, n, k, float>& c,
                              detail::Site site = detail::Site::here()) {
  fwm::emulator::multiply({a.tile, b.tile, c.tile, a.x, b.x, c.x, d.x}, site);
}

}  // namespace wmma
}  // namespace nvcuda
