// Vectors of FWM_VECTOR_BYTES through compiler extensions: one source for every ISA.
// Included only by isa_*.cpp, after FWM_ISA, FWM_VECTOR_BYTES and FWM_REGISTERS are defined.
#pragma once

#define FWM_INLINE inline __attribute__((always_inline))
#define FWM_UNROLL _Pragma("GCC unroll 32")
#define FWM_EACH(i, count) FWM_UNROLL for (int i = 0; i < (count); i++)

namespace fwm {
namespace FWM_ISA {

// No std::min and the like here: the linker keeps one copy of an inline function from several
// translation units, and it could be the one compiled for instructions this machine has not got.
FWM_INLINE Index min(Index a, Index b) { return a < b ? a : b; }
FWM_INLINE Index max(Index a, Index b) { return a > b ? a : b; }
FWM_INLINE Index round_up(Index x, Index to) { return (x + to - 1) / to * to; }

template <class F>
struct Int;
template <>
struct Int<float> {
  using type = std::int32_t;
};
template <>
struct Int<double> {
  using type = std::int64_t;
};

template <class F>
struct Simd {
  static constexpr int W = FWM_VECTOR_BYTES / sizeof(F);
  typedef F Vec __attribute__((vector_size(FWM_VECTOR_BYTES)));
  // The same at any address. Its accesses alias those of F only, unlike memcpy's: sizes and pointers
  // stay in registers across a store.
  typedef F Loose __attribute__((vector_size(FWM_VECTOR_BYTES), aligned(sizeof(F))));
  typedef typename Int<F>::type Mask __attribute__((vector_size(FWM_VECTOR_BYTES)));
};
template <class F>
using Vec = typename Simd<F>::Vec;
template <class F>
constexpr int W = Simd<F>::W;

template <class F>
FWM_INLINE Vec<F> load(const F* p) {
  return *reinterpret_cast<const typename Simd<F>::Loose*>(p);
}
template <class F>
FWM_INLINE void store(F* p, Vec<F> x) {
  *reinterpret_cast<typename Simd<F>::Loose*>(p) = x;
}
template <class F>
FWM_INLINE Vec<F> spread(F x) {
  return x - Vec<F>{};
}
// The first n < W numbers; nothing beyond them is touched.
template <class F>
FWM_INLINE Vec<F> load_part(const F* p, Index n) {
  Vec<F> x{};
  __builtin_memcpy(&x, p, n * sizeof(F));
  return x;
}
template <class F>
FWM_INLINE void store_part(F* p, Vec<F> x, Index n) {
  __builtin_memcpy(p, &x, n * sizeof(F));
}

#if defined(__clang__)
template <class F, int Half, int... I>
FWM_INLINE Vec<F> interleave(Vec<F> a, Vec<F> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (Half * W<F> / 2 + I / 2 + (I % 2 ? W<F> : 0))...);
}
#else
template <class F, int Half, int... I>
FWM_INLINE Vec<F> interleave(Vec<F> a, Vec<F> b, std::integer_sequence<int, I...>) {
  constexpr typename Simd<F>::Mask order = {(Half * W<F> / 2 + I / 2 + (I % 2 ? W<F> : 0))...};
  return __builtin_shuffle(a, b, order);
}
#endif
// a0 b0 a1 b1 ... of the first (Half = 0) or second half of a and b.
template <int Half, class F>
FWM_INLINE Vec<F> interleave(Vec<F> a, Vec<F> b, F) {
  return interleave<F, Half>(a, b, std::make_integer_sequence<int, W<F>>{});
}

// Every round adds the two halves of the lanes.
template <class F>
FWM_INLINE F total(Vec<F> x) {
  FWM_UNROLL for (int n = W<F>; n > 1; n /= 2) x = interleave<0>(x, x, F()) + interleave<1>(x, x, F());
  return x[0];
}

constexpr int bit_reversed(int i, int count) {
  int out = 0;
  for (int bit = 1; bit < count; bit *= 2) out = out * 2 + (i & bit ? 1 : 0);
  return out;
}

// Sums over the lanes of M vectors at once (M a power of two): out[m] = sum of x[m].
template <int M, class F>
FWM_INLINE void totals(const Vec<F>* x, F* out) {
  if constexpr (M > W<F>) {
    totals<M / 2>(x, out);
    totals<M / 2>(x + M / 2, out + M / 2);
  } else {
    // Every round halves the vectors: lane parity tells which of the two it came from.
    Vec<F> v[M];
    FWM_UNROLL for (int i = 0; i < M; i++) v[i] = x[bit_reversed(i, M)];
    FWM_UNROLL for (int n = M; n > 1; n /= 2) {
      FWM_UNROLL for (int i = 0; i < n / 2; i++) {
        const Vec<F> a = v[2 * i], b = v[2 * i + 1];
        v[i] = interleave<0>(a, b, F()) + interleave<1>(a, b, F());
      }
    }
    F lanes[W<F>];
    store(lanes, v[0]);
    FWM_UNROLL for (int m = 0; m < M; m++) {
      F sum = lanes[m];
      FWM_UNROLL for (int i = m + M; i < W<F>; i += M) sum += lanes[i];
      out[m] = sum;
    }
  }
}

template <class F>
FWM_INLINE F dot(const F* a, const F* b, Index padded) {
  Vec<F> sum{};
  for (Index i = 0; i < padded; i += W<F>) sum += load(a + i) * load(b + i);
  return total<F>(sum);
}

// exp for arguments <= 88 (fp32) or 700 (fp64), and 0 far below: 2^n times a Taylor polynomial of
// the rest, |rest| <= ln(2) / 2, whose degree puts its error under half an ulp.
template <class F>
FWM_INLINE Vec<F> exponential(Vec<F> x) {
  constexpr bool single = sizeof(F) == 4;
  constexpr int degree = single ? 7 : 13;
  constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023;
  using I = typename Int<F>::type;
  constexpr F ln2_high = single ? F(0.693359375) : F(0.693147180369123816490);
  constexpr F ln2_low = single ? F(-2.12194440054690583e-4) : F(1.90821492927058770002e-10);
  constexpr F lowest = single ? F(-87) : F(-708);
  // Adding 1.5 * 2^mantissa rounds to an integer.
  constexpr F rounder = F(3) * F(I(1) << (mantissa - 1));
  const auto tiny = x < spread(lowest);
  x = tiny ? spread(lowest) : x;
  const Vec<F> n = (x * spread(F(1.44269504088896340736)) + spread(rounder)) - spread(rounder);
  const Vec<F> rest = (x - n * spread(ln2_high)) - n * spread(ln2_low);
  F coefficient[degree + 1];
  coefficient[0] = 1;
  FWM_UNROLL for (int i = 1; i <= degree; i++) coefficient[i] = coefficient[i - 1] / F(i);
  Vec<F> p = spread(coefficient[degree]);
  FWM_UNROLL for (int i = degree - 1; i >= 0; i--) p = p * rest + spread(coefficient[i]);
  const auto power = (__builtin_convertvector(n, typename Simd<F>::Mask) + I(bias)) << mantissa;
  Vec<F> scale;
  __builtin_memcpy(&scale, &power, sizeof scale);
  return tiny ? Vec<F>{} : p * scale;
}

// Memory of one thread for one call, handed out in aligned pieces.
class Scratch {
 public:
  explicit Scratch(Index bytes)
      : memory_(static_cast<char*>(std::aligned_alloc(64, round_up(bytes, 64)))) {
    if (!memory_) std::abort();
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void reset() { used_ = 0; }

  template <class F>
  F* take(Index count) {
    F* piece = reinterpret_cast<F*>(memory_ + used_);
    used_ += round_up(count * sizeof(F), 64);
    return piece;
  }

 private:
  char* memory_;
  Index used_ = 0;
};

}  // namespace FWM_ISA
}  // namespace fwm
