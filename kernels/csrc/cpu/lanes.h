// Many small sequences side by side: one sequence per lane of the vectors. Numbers that belong together
// are W apart: element i of a vector is at x + i * W, and (i, j) of a matrix at m + (i * columns + j) * W.
#pragma once

#include "gemm.h"

namespace fwm {
namespace FWM_ISA {

constexpr int kLaneBlock = FWM_REGISTERS == 32 ? 8 : 4;  // columns whose sums stay in registers

template <class F>
FWM_INLINE Vec<F> lanes_at(const F* x, Index i) {
  return load(x + i * W<F>);
}

// Call run(std::integral_constant<int, B>, j) for blocks of columns.
template <class Run>
FWM_INLINE void for_blocks(Index columns, Run run) {
  Index j = 0;
  for (; j + kLaneBlock <= columns; j += kLaneBlock) run(std::integral_constant<int, kLaneBlock>{}, j);
  for (; j < columns; j++) run(std::integral_constant<int, 1>{}, j);
}

// Passes over a matrix of `rows` x `columns`.

// y_j = sum_i x_i m_ij, after m_ij += k_i u_j where k is given.
template <bool Write, class F>
void write_and_read(F* m, Index rows, Index columns, const F* k, const F* u, const F* x, F* y) {
  for_blocks(columns, [&](auto block, Index j) {
    constexpr int B = decltype(block)::value;
    Vec<F> sum[B], change[B];
    FWM_EACH(b, B) {
      sum[b] = Vec<F>{};
      if (Write) change[b] = lanes_at(u, j + b);
    }
    for (Index i = 0; i < rows; i++) {
      F* row = m + (i * columns + j) * W<F>;
      const Vec<F> a = lanes_at(x, i);
      Vec<F> key;
      if (Write) key = lanes_at(k, i);
      FWM_EACH(b, B) {
        Vec<F> e = lanes_at(row, b);
        if (Write) store(row + b * W<F>, e += key * change[b]);
        sum[b] += a * e;
      }
    }
    FWM_EACH(b, B) store(y + (j + b) * W<F>, sum[b]);
  });
}

// x_i += sum_j m_ij z_j.
template <class F>
void project(const F* m, Index rows, Index columns, const F* z, F* x) {
  for_blocks(columns, [&](auto block, Index j) {
    constexpr int B = decltype(block)::value;
    Vec<F> by[B];
    FWM_EACH(b, B) by[b] = lanes_at(z, j + b);
    for (Index i = 0; i < rows; i++) {
      const F* row = m + (i * columns + j) * W<F>;
      Vec<F> even{}, odd{};
      FWM_EACH(b, B) (b % 2 ? odd : even) += by[b] * lanes_at(row, b);
      store(x + i * W<F>, lanes_at(x, i) + (even + odd));
    }
  });
}

// m_ij += k_i u_j.
template <class F>
void write_only(F* m, Index rows, Index columns, const F* k, const F* u) {
  for_blocks(columns, [&](auto block, Index j) {
    constexpr int B = decltype(block)::value;
    Vec<F> change[B];
    FWM_EACH(b, B) change[b] = lanes_at(u, j + b);
    for (Index i = 0; i < rows; i++) {
      F* row = m + (i * columns + j) * W<F>;
      const Vec<F> key = lanes_at(k, i);
      FWM_EACH(b, B) store(row + b * W<F>, lanes_at(row, b) + key * change[b]);
    }
  });
}
// m_ij += k_i u_j, then x_i += sum_j m_ij z_j.
template <class F>
void write_and_project(F* m, Index rows, Index columns, const F* k, const F* u, const F* z, F* x) {
  for_blocks(columns, [&](auto block, Index j) {
    constexpr int B = decltype(block)::value;
    Vec<F> change[B], by[B];
    FWM_EACH(b, B) change[b] = lanes_at(u, j + b), by[b] = lanes_at(z, j + b);
    for (Index i = 0; i < rows; i++) {
      F* row = m + (i * columns + j) * W<F>;
      const Vec<F> key = lanes_at(k, i);
      Vec<F> even{}, odd{};
      FWM_EACH(b, B) {
        const Vec<F> e = lanes_at(row, b) + key * change[b];
        store(row + b * W<F>, e);
        (b % 2 ? odd : even) += by[b] * e;
      }
      store(x + i * W<F>, lanes_at(x, i) + (even + odd));
    }
  });
}

// A matrix that all lanes share, (rows, columns) plain numbers: y_j += sum_i x_i m_ij.
template <class F>
void read_shared(const F* m, Index rows, Index columns, const F* x, F* y) {
  for_blocks(columns, [&](auto block, Index j) {
    constexpr int B = decltype(block)::value;
    Vec<F> sum[B];
    FWM_EACH(b, B) sum[b] = lanes_at(y, j + b);
    for (Index i = 0; i < rows; i++) {
      const Vec<F> a = lanes_at(x, i);
      FWM_EACH(b, B) sum[b] += a * spread(m[i * columns + j + b]);
    }
    FWM_EACH(b, B) store(y + (j + b) * W<F>, sum[b]);
  });
}
// x_i += sum_j m_ij z_j.
template <class F>
void project_shared(const F* m, Index rows, Index columns, const F* z, F* x) {
  for_blocks(rows, [&](auto block, Index i) {
    constexpr int B = decltype(block)::value;
    Vec<F> sum[B];
    FWM_EACH(b, B) sum[b] = lanes_at(x, i + b);
    for (Index j = 0; j < columns; j++) {
      const Vec<F> a = lanes_at(z, j);
      FWM_EACH(b, B) sum[b] += a * spread(m[(i + b) * columns + j]);
    }
    FWM_EACH(b, B) store(x + (i + b) * W<F>, sum[b]);
  });
}

// Up to W sequences whose rows are `apart` in a tensor, and which of them take part in a step.
template <class F>
class LaneGroup {
 public:
  explicit LaneGroup(Index count) : count_(count) {}

  // Room for a row of `width` in every lane: whole tiles.
  static Index padded(Index width) { return round_up(width, W<F>) * W<F>; }

  // to[i] = from[i] of every lane. `room` numbers are there from lane 0's row on, so that a vector may
  // run over a row's end; lanes that are not `alive` get zeros.
  void load(const F* from, Index apart, Index width, Index room, F* to, const F* alive = nullptr) const {
    for (Index i = 0; i < width; i += W<F>) {
      F tile[W<F> * W<F>];
      for (Index lane = 0; lane < W<F>; lane++) {
        const Index begin = lane * apart + i;
        Vec<F> row{};
        if (lane < count_ && (!alive || alive[lane] != 0)) {
          row = begin + W<F> <= room ? fwm::FWM_ISA::load(from + begin)
                                     : load_part(from + begin, min(Index(W<F>), width - i));
        }
        store(tile + lane * W<F>, row);
      }
      transpose(W<F>, W<F>, tile, Index(W<F>), to + i * W<F>, Index(W<F>));
    }
  }
  // The reverse. With `spill` numbers behind a row may be overwritten, because they are still to come.
  void save(const F* from, F* to, Index apart, Index width, bool spill) const {
    for (Index i = 0; i < width; i += W<F>) {
      F tile[W<F> * W<F>];
      transpose(W<F>, W<F>, from + i * W<F>, Index(W<F>), tile, Index(W<F>));
      const bool whole = spill || i + W<F> <= width;
      for (Index lane = 0; lane < count_; lane++) {
        F* row = to + lane * apart + i;
        const Vec<F> x = fwm::FWM_ISA::load(tile + lane * W<F>);
        whole ? store(row, x) : store_part(row, x, width - i);
      }
    }
  }
  // One for lanes that take part at time t, zero for the others; mask rows are T apart.
  void step(const bool* mask, Index T, Index t, F* alive) const {
    for (Index lane = 0; lane < W<F>; lane++) {
      alive[lane] = lane < count_ && (!mask || mask[lane * T + t]) ? F(1) : F(0);
    }
  }

 private:
  Index count_;
};

// The rows of all time steps of a group in a tensor (N, H, T, width).
template <class F>
class LaneRows {
 public:
  LaneRows(const void* data, const LaneGroup<F>& lanes, Index first, Index total, Index H, Index T, Index width)
      : lanes_(lanes),
        data_(static_cast<F*>(const_cast<void*>(data)) + first * T * width),
        room_((total - first) * T * width),
        apart_(H * T * width),
        T_(T),
        width_(width) {}

  void load(Index t, F* to, const F* alive = nullptr) const {
    lanes_.load(data_ + t * width_, apart_, width_, room_ - t * width_, to, alive);
  }
  // Steps before `end` may be overwritten behind step t.
  void save(Index t, const F* from, Index end) const {
    lanes_.save(from, data_ + t * width_, apart_, width_, (end - 1 - t) * width_ >= W<F>);
  }
  void save(Index t, const F* from) const { save(t, from, T_); }

 private:
  const LaneGroup<F>& lanes_;
  F* data_;
  Index room_, apart_, T_, width_;
};

// What is kept for the backward pass stays in lanes: (group, T, width).
template <class F>
FWM_INLINE F* kept_row(void* kept, Index item, Index T, Index t, Index width) {
  return static_cast<F*>(kept) + (item * T + t) * width * W<F>;
}

// ---- activations, element by element of a vector of d

template <class F>
FWM_INLINE Vec<F> sigmoid(Vec<F> x) {
  const Vec<F> e = exponential<F>(x < 0 ? x : -x);  // which takes no large arguments
  return (x < 0 ? e : F(1) - Vec<F>{}) / (F(1) + e);
}
// tanh(x) = (1 - e) / (1 + e) with e = exp(-2 |x|), and its series near zero, where that loses digits.
template <class F>
FWM_INLINE Vec<F> tangent(Vec<F> x) {
  const Vec<F> size = x < 0 ? -x : x, e = exponential<F>(F(-2) * size);
  const Vec<F> far = (F(1) - e) / (F(1) + e), z = x * x;
  constexpr F c[] = {F(6404582) / F(10854718875), F(-929569) / F(638512875), F(21844) / F(6081075),
                     F(-1382) / F(155925),        F(62) / F(2835),           F(-17) / F(315),
                     F(2) / F(15),                F(-1) / F(3),              F(1)};
  Vec<F> p{};
  for (F a : c) p = p * z + a;
  return size < F(0.1) ? x * p : x < 0 ? -far : far;
}
template <class F>
void softmax(const F* x, F* p, Index d) {
  Vec<F> largest = load(x), sum{};
  for (Index i = 1; i < d; i++) {
    const Vec<F> e = lanes_at(x, i);
    largest = e > largest ? e : largest;
  }
  for (Index i = 0; i < d; i++) {
    const Vec<F> e = exponential<F>(lanes_at(x, i) - largest);
    sum += e;
    store(p + i * W<F>, e);
  }
  const Vec<F> by = F(1) / sum;
  for (Index i = 0; i < d; i++) store(p + i * W<F>, lanes_at(p, i) * by);
}
// From the gradient of p = softmax(x) to that of x.
template <class F>
void softmax_gradient(const F* p, const F* dp, F* dx, Index d) {
  Vec<F> mean{};
  for (Index i = 0; i < d; i++) mean += lanes_at(p, i) * lanes_at(dp, i);
  for (Index i = 0; i < d; i++) store(dx + i * W<F>, lanes_at(p, i) * (lanes_at(dp, i) - mean));
}

}  // namespace FWM_ISA
}  // namespace fwm
