// CUDA's small vectors, without the CUDA toolkit.
#pragma once

// A vector is copied by one access of its full width, as a GPU does it: member by member, the
// memory report would see narrow, strided accesses. The type of that access is loosely aligned,
// because a plain build shall not crash; -fsanitize=alignment reports the address where a reference
// is bound.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;

  Pair() = default;
  Pair(T x, T y) : x(x), y(y) {}
  Pair(const Pair& other) { copy(other); }
  Pair& operator=(const Pair& other) { return copy(other), *this; }

 private:
  typedef T Whole __attribute__((vector_size(2 * sizeof(T)), aligned(alignof(T)), may_alias));
  void copy(const Pair& other) {
    *reinterpret_cast<Whole*>(this) = *reinterpret_cast<const Whole*>(&other);
  }
};

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T x, y, z, w;

  Quad() = default;
  Quad(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
  Quad(const Quad& other) { copy(other); }
  Quad& operator=(const Quad& other) { return copy(other), *this; }

 private:
  typedef T Whole __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), may_alias));
  void copy(const Quad& other) {
    *reinterpret_cast<Whole*>(this) = *reinterpret_cast<const Whole*>(&other);
  }
};

using float2 = Pair<float>;
using int2 = Pair<int>;
using uint2 = Pair<unsigned>;
using float4 = Quad<float>;
using int4 = Quad<int>;
using uint4 = Quad<unsigned>;

inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
