// Feature maps by rows: phi(x), and the gradient back to x.
#pragma once

#include "rows.h"

namespace fwm {
namespace FWM_ISA {

// Works on blocks of rows: every stage writes a whole block before the next one reads it, so that
// shifted loads do not wait for stores still under way.
template <class F>
class FeatureRows {
 public:
  static Index padded_d(const Features& f) { return round_up(f.d, W<F>); }
  static Index padded_K(const Features& f) { return round_up(f.K, W<F>); }
  static Index scratch_bytes(const Features& f, Index rows) {
    if (f.map != FeatureMap::dpfp) return 0;
    const Index products = kTogether * (f.nu * extended(f) + sums(f));
    return (rows * extended(f) + products) * sizeof(F) + 4 * 64;
  }

  FeatureRows(const Features& f, Index rows, Scratch& scratch) : f_(f), K_(padded_K(f)) {
    if (f.map != FeatureMap::dpfp) return;
    r_ = scratch.take<F>(rows * extended(f));
    products_ = scratch.take<F>(kTogether * f.nu * extended(f));
    dr_ = scratch.take<F>(kTogether * sums(f));
  }

  // phi[i] from x[i] for a block of rows; the row after the last one of phi is overwritten up to one
  // vector. With sum normalisation inverse_sum[i] = 1 / (sum phi + eps).
  void forward(Index rows, const F* x, F* phi, F* inverse_sum) const {
    if (f_.map == FeatureMap::elu) {
      for (Index i = 0; i < rows; i++) elu(x + i * padded_d(f_), phi + i * K_);
    } else if (f_.map == FeatureMap::dpfp) {
      rectify(rows, x);
      for (Index i = 0; i < rows; i++) {
        const F sum = dpfp(r_ + i * extended(f_), phi + i * K_);
        if (f_.sum_norm) inverse_sum[i] = 1 / (sum + F(kSumNormEps));
      }
    } else {
      for (Index i = 0; i < rows * K_; i += W<F>) store(phi + i, load(x + i));
    }
    if (!f_.sum_norm) return;
    if (f_.map != FeatureMap::dpfp) sum_rows(rows, phi, inverse_sum);
    for (Index i = 0; i < rows; i++) {
      const Vec<F> scale = spread(inverse_sum[i]);
      F* row = phi + i * K_;
      for (Index j = 0; j < K_; j += W<F>) store(row + j, load(row + j) * scale);
    }
  }

  // dx[i] from dphi[i], which is overwritten; x, phi and inverse_sum as forward, called
  // last for the same rows, left them.
  void backward(Index rows, const F* x, const F* phi, const F* inverse_sum, F* dphi, F* dx) const {
    if (f_.sum_norm) denormalize(rows, phi, inverse_sum, dphi);
    const Index d = padded_d(f_);
    if (f_.map == FeatureMap::dpfp) {
      for (Index i = 0; i < rows; i += kTogether) {
        const Index count = min(kTogether, rows - i);
        dpfp_backward(count, r_ + i * extended(f_), x + i * d, dphi + i * K_, dx + i * d);
      }
    } else {
      for (Index i = 0; i < rows * d; i += W<F>) {  // K_ == d
        const Vec<F> a = load(x + i), g = load(dphi + i);
        const bool elu = f_.map == FeatureMap::elu;
        store(dx + i, elu ? g * (a > Vec<F>{} ? spread(F(1)) : exponential<F>(a)) : g);
      }
    }
  }

 private:
  static constexpr Index kTogether = 8;

  static Index sums(const Features& f) { return 2 * round_up(2 * f.d, W<F>); }
  static Index front(const Features& f) { return round_up(f.nu, W<F>); }
  static Index extended(const Features& f) {
    return front(f) + round_up(2 * f.d + f.nu, W<F>) + 2 * W<F>;
  }

  // r = [relu(x), relu(-x)] of each row, kept with what cyclic shifts need on both sides.
  void rectify(Index rows, const F* x) const {
    const Index d = f_.d, D = 2 * d, padded = padded_d(f_), length = extended(f_);
    F* first = r_ + front(f_);
    const Vec<F> zero{};
    for (Index i = 0; i < rows; i++) {
      F* r = first + i * length;
      const F* row = x + i * padded;
      for (Index j = 0; j < padded; j += W<F>) {
        const Vec<F> a = load(row + j);
        store(r + j, a > zero ? a : zero);
      }
      for (Index j = 0; j < padded; j += W<F>) {
        const Vec<F> a = load(row + j);
        store(r + d + j, a < zero ? -a : zero);
      }
      store(r + D, zero);
    }
    for (Index i = 0; i < rows; i++) {
      F* r = first + i * length;
      if (front(f_) <= D) {
        for (Index j = front(f_); j > 0; j -= W<F>) store(r - j, load(r + D - j));
      } else {
        for (Index j = 1; j <= f_.nu; j++) r[-j] = r[D - j];
      }
    }
  }

  void elu(const F* x, F* phi) const {
    for (Index j = 0; j < K_; j += W<F>) {
      const Vec<F> a = load(x + j);
      store(phi + j, a > Vec<F>{} ? a + spread(F(1)) : exponential<F>(a));
    }
    for (Index j = f_.K; j < K_; j++) phi[j] = 0;
  }

  // Returns the sum of the features. Blocks of 2d numbers in ascending order: what one writes too far
  // (zeros), the next one overwrites.
  F dpfp(const F* extended_row, F* phi) const {
    const F* r = extended_row + front(f_);
    const Index D = 2 * f_.d;
    Vec<F> sum{};
    for (Index shift = 1; shift <= f_.nu; shift++) {
      F* out = phi + (shift - 1) * D;
      for (Index j = 0; j < D; j += W<F>) {
        const Vec<F> product = load(r + j) * load(r + j - shift);
        sum += product;
        store(out + j, product);
      }
    }
    for (Index j = f_.K; j < K_; j++) phi[j] = 0;
    return total<F>(sum);
  }

  void sum_rows(Index rows, const F* phi, F* inverse_sum) const {
    for (Index i = 0; i < rows; i++) {
      Vec<F> sum{};
      for (Index j = 0; j < K_; j += W<F>) sum += load(phi + i * K_ + j);
      inverse_sum[i] = 1 / (total<F>(sum) + F(kSumNormEps));
    }
  }

  void denormalize(Index rows, const F* phi, const F* inverse_sum, F* dphi) const {
    for (Index i = 0; i < rows; i++) {
      F* g = dphi + i * K_;
      const Vec<F> along = spread(dot(g, phi + i * K_, K_)), scale = spread(inverse_sum[i]);
      for (Index j = 0; j < K_; j += W<F>) store(g + j, (load(g + j) - along) * scale);
    }
  }

  // With r = [relu(x), relu(-x)] and cyclic indices,
  // dr_i = sum_s dphi_s,i r_{i-s} + dphi_s,i+s r_{i+s}.
  void dpfp_backward(Index rows, const F* extended_rows, const F* x, const F* dphi, F* dx) const {
    const Index D = 2 * f_.d, length = extended(f_), d = f_.d, padded = padded_d(f_);
    for (Index i = 0; i < rows; i++) {
      const F* r = extended_rows + i * length + front(f_);
      for (Index j = 0; j < D; j += W<F>) {
        Vec<F> sum{};
        for (Index shift = 1; shift <= f_.nu; shift++) {
          const Vec<F> g = load_block(dphi + i * K_ + (shift - 1) * D, j, D);
          sum += g * load(r + j - shift);
          store(products(i, shift) + j, g * load(r + j));
        }
        store(dr_ + i * sums(f_) + j, sum);
      }
    }
    for (Index i = 0; i < rows; i++) {
      for (Index shift = 1; shift <= f_.nu; shift++) {
        F* p = products(i, shift);
        for (Index j = 0; j < shift; j++) p[D + j] = p[j];
      }
    }
    for (Index i = 0; i < rows; i++) {
      for (Index j = 0; j < D; j += W<F>) {
        F* dr = dr_ + i * sums(f_) + j;
        Vec<F> sum = load(dr);
        for (Index shift = 1; shift <= f_.nu; shift++) sum += load(products(i, shift) + j + shift);
        store(dr, sum);
      }
    }
    for (Index i = 0; i < rows; i++) {
      const F* dr = dr_ + i * sums(f_);
      for (Index j = 0; j < padded; j += W<F>) {
        const Vec<F> a = load(x + i * padded + j), zero{};
        const Vec<F> up = load(dr + j), down = load(dr + d + j);
        store(dx + i * padded + j, a > zero ? up : (a < zero ? -down : zero));
      }
    }
  }
  F* products(Index row, Index shift) const {
    return products_ + (row * f_.nu + shift - 1) * extended(f_);
  }

  // Numbers [j, j + W) of a block of D, without reading beyond the block.
  static FWM_INLINE Vec<F> load_block(const F* block, Index j, Index D) {
    return j + W<F> <= D ? load(block + j) : load_part(block + j, D - j);
  }

  const Features& f_;
  Index K_;
  F *r_ = nullptr, *products_ = nullptr, *dr_ = nullptr;
};

}  // namespace FWM_ISA
}  // namespace fwm
