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
    const Index floats = rows * extended(f) + f.nu * extended(f) + 2 * round_up(2 * f.d, W<F>);
    return floats * sizeof(F) + 4 * 64;
  }

  FeatureRows(const Features& f, Index rows, Scratch& scratch) : f_(f), K_(padded_K(f)) {
    if (f.map != FeatureMap::dpfp) return;
    r_ = scratch.take<F>(rows * extended(f));
    shifted_ = scratch.take<F>(f.nu * extended(f));
    dr_ = scratch.take<F>(2 * round_up(2 * f.d, W<F>));
  }

  // phi[i] from x[i] for a block of rows; the row after the last one of phi is overwritten up to one
  // vector. With sum normalisation inverse_sum[i] = 1 / (sum phi + eps).
  void forward(Index rows, const F* x, F* phi, F* inverse_sum) const {
    if (f_.map == FeatureMap::elu) {
      for (Index i = 0; i < rows; i++) elu(x + i * padded_d(f_), phi + i * K_);
    } else if (f_.map == FeatureMap::dpfp) {
      rectify(rows, x);
      for (Index i = 0; i < rows; i++) dpfp(r_ + i * extended(f_), phi + i * K_);
    } else {
      for (Index i = 0; i < rows * K_; i += W<F>) store(phi + i, load(x + i));
    }
    if (f_.sum_norm) normalize(rows, phi, inverse_sum);
  }

  // dx[i] from dphi[i], which is overwritten; x, phi and inverse_sum as forward left them. Must
  // follow rectify() of the same rows.
  void backward(Index rows, const F* x, const F* phi, const F* inverse_sum, F* dphi, F* dx) const {
    if (f_.sum_norm) denormalize(rows, phi, inverse_sum, dphi);
    for (Index i = 0; i < rows; i++) {
      const Index d = padded_d(f_);
      const F* g = dphi + i * K_;
      if (f_.map == FeatureMap::elu) {
        for (Index j = 0; j < d; j += W<F>) {
          const Vec<F> a = load(x + i * d + j);
          store(dx + i * d + j, load(g + j) * (a > Vec<F>{} ? spread(F(1)) : exponential<F>(a)));
        }
      } else if (f_.map == FeatureMap::dpfp) {
        dpfp_backward(r_ + i * extended(f_), x + i * d, g, dx + i * d);
      } else {
        for (Index j = 0; j < d; j += W<F>) store(dx + i * d + j, load(g + j));
      }
    }
  }

  // r = [relu(x), relu(-x)] of each row, kept with what cyclic shifts need on both sides.
  void rectify(Index rows, const F* x) const {
    if (f_.map != FeatureMap::dpfp) return;
    const Index d = f_.d, padded = padded_d(f_);
    for (Index i = 0; i < rows; i++) {
      F* r = r_ + i * extended(f_) + front(f_);
      const F* row = x + i * padded;
      for (Index j = 0; j < padded; j += W<F>) {
        const Vec<F> a = load(row + j);
        store(r + j, a > Vec<F>{} ? a : Vec<F>{});
      }
      for (Index j = 0; j < padded; j += W<F>) {
        const Vec<F> a = load(row + j);
        store(r + d + j, a < Vec<F>{} ? -a : Vec<F>{});
      }
      for (Index j = 0; j < W<F>; j++) r[2 * d + j] = 0;
      for (Index j = 1; j <= f_.nu; j++) {
        const F a = row[(2 * d - j) % d];
        r[-j] = 2 * d - j < d ? (a > 0 ? a : 0) : (a < 0 ? -a : 0);
      }
    }
  }

 private:
  static Index front(const Features& f) { return round_up(f.nu, W<F>); }
  static Index extended(const Features& f) {
    return front(f) + round_up(2 * f.d + f.nu, W<F>) + 2 * W<F>;
  }

  void elu(const F* x, F* phi) const {
    for (Index j = 0; j < K_; j += W<F>) {
      const Vec<F> a = load(x + j);
      store(phi + j, a > Vec<F>{} ? a + spread(F(1)) : exponential<F>(a));
    }
    for (Index j = f_.K; j < K_; j++) phi[j] = 0;
  }

  // Blocks of 2d numbers in ascending order: what one writes too far, the next one overwrites.
  void dpfp(const F* extended_row, F* phi) const {
    const F* r = extended_row + front(f_);
    const Index D = 2 * f_.d;
    for (Index shift = 1; shift <= f_.nu; shift++) {
      F* out = phi + (shift - 1) * D;
      for (Index j = 0; j < D; j += W<F>) store(out + j, load(r + j) * load(r + j - shift));
    }
    for (Index j = f_.K; j < K_; j++) phi[j] = 0;
  }

  void normalize(Index rows, F* phi, F* inverse_sum) const {
    for (Index i = 0; i < rows; i++) {
      F* row = phi + i * K_;
      Vec<F> sum{};
      for (Index j = 0; j < K_; j += W<F>) sum += load(row + j);
      inverse_sum[i] = 1 / (total<F>(sum) + F(kSumNormEps));
      const Vec<F> scale = spread(inverse_sum[i]);
      for (Index j = 0; j < K_; j += W<F>) store(row + j, load(row + j) * scale);
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
  void dpfp_backward(const F* extended_row, const F* x, const F* dphi, F* dx) const {
    const F* r = extended_row + front(f_);
    const Index D = 2 * f_.d, length = extended(f_);
    for (Index j = 0; j < D; j += W<F>) {
      Vec<F> sum{};
      for (Index shift = 1; shift <= f_.nu; shift++) {
        const Vec<F> g = load_block(dphi + (shift - 1) * D, j, D);
        sum += g * load(r + j - shift);
        store(shifted_ + (shift - 1) * length + j, g * load(r + j));
      }
      store(dr_ + j, sum);
    }
    for (Index shift = 1; shift <= f_.nu; shift++) {
      F* h = shifted_ + (shift - 1) * length;
      for (Index j = 0; j < shift; j++) h[D + j] = h[j];
    }
    for (Index j = 0; j < D; j += W<F>) {
      Vec<F> sum = load(dr_ + j);
      for (Index shift = 1; shift <= f_.nu; shift++) {
        sum += load(shifted_ + (shift - 1) * length + j + shift);
      }
      store(dr_ + j, sum);
    }
    const Index d = f_.d, padded = padded_d(f_);
    for (Index j = 0; j < padded; j += W<F>) {
      const Vec<F> a = load(x + j), zero{};
      const Vec<F> up = load(dr_ + j), down = load(dr_ + d + j);
      store(dx + j, a > zero ? up : (a < zero ? -down : zero));
    }
  }

  // Numbers [j, j + W) of a block of D, without reading beyond the block.
  static FWM_INLINE Vec<F> load_block(const F* block, Index j, Index D) {
    return j + W<F> <= D ? load(block + j) : load_part(block + j, D - j);
  }

  const Features& f_;
  Index K_;
  F *r_ = nullptr, *shifted_ = nullptr, *dr_ = nullptr;
};

}  // namespace FWM_ISA
}  // namespace fwm
