// What the passes for the gradients of keys and queries share: states with values along the rows, whose
// columns belong to key features.
//
// A feature map mixes all features of a row, so that a block has to see all columns: it goes through
// them in parts that fit the registers, and keeps the others in global memory between blocks of time
// steps. Where nothing is mapped, columns are shared out over blocks instead.
#pragma once

#include "backward_values.cuh"

namespace fwm {
namespace gpu {

// Value features [begin, begin + count) in one launch, and what that launch has to do.
struct Slab {
  int begin = 0, count = 0;
  bool first = true;  // also the parts of the gradients that no value takes part in
  Sink dq, dk;
};

inline bool sees_all_columns(const Causal& a) { return is_mapped(a.features); }

template <class Shape>
struct Columns {
  int begin, width, parts;  // of this block; `parts` of kColumns

  __host__ __device__ Columns(const Causal& a, bool all, int block)
      : begin(all ? 0 : block * Shape::kColumns),
        width(all || int(a.features.K) - begin < Shape::kColumns ? int(a.features.K) - begin
                                                                 : Shape::kColumns),
        parts((width + Shape::kColumns - 1) / Shape::kColumns) {}
  __host__ __device__ int ld() const { return parts * Shape::kColumns; }
};

template <class Shape>
unsigned blocks_of_columns(const Causal& a) {
  if (sees_all_columns(a)) return 1;
  return unsigned((a.features.K + Shape::kColumns - 1) / Shape::kColumns);
}

// A block's columns of S or of its gradient, one part at a time. With a single part it stays in registers.
template <class Shape>
class ColumnParts {
 public:
  __device__ ColumnParts(const Causal& a, const Slab& slab, const Columns<Shape>& columns,
                         const void* start, const Head& head, float* places)
      : columns_(columns), K_(int(a.features.K)), V_(int(a.V)), rows_(slab.count) {
    const Index state = head.index * a.features.K * a.V + slab.begin;
    start_ = start ? static_cast<const float*>(start) + state : nullptr;
    places_ = places + head.index * columns.parts * kPlace;
  }

  static constexpr Index kPlace = Shape::kRows * Shape::kColumns;

  // Call run(column part, its first column in the block) for all parts; `fresh` in the first block of
  // time steps.
  template <class Run>
  __device__ void for_each(bool fresh, Run run) {
    for (int part = 0; part < columns_.parts; part++) {
      const int first = part * Shape::kColumns;
      if (fresh) {
        now_.load(start_, rows_, 1, K_, V_, columns_.begin + first);
      } else if (columns_.parts > 1) {
        now_.take(places_ + part * kPlace);
      }
      run(now_, first);
      if (columns_.parts > 1) now_.keep(places_ + part * kPlace);
    }
  }

 private:
  Columns<Shape> columns_;
  int K_, V_, rows_;
  const float* start_;
  float* places_;
  Column<Shape> now_;
};

// Rows of values of a block of time steps: dy_t, and v_t (sum) or beta_t r_t and dv_t = beta_t u_t (delta).
template <class Shape, bool Delta>
struct ValueTiles {
  float *dy, *written, *dv;

  __device__ ValueTiles(SharedMemory& shared, int steps) {
    dy = shared.take<float>(steps * Shape::kRows);
    written = shared.take<float>(steps * Shape::kRows);
    dv = Delta ? shared.take<float>(steps * Shape::kRows) : nullptr;
  }
  static std::size_t bytes(int steps) {
    return (Delta ? 3 : 2) * shared_bytes<float>(steps * Shape::kRows);
  }

  __device__ void load(const Causal& a, const BackwardWorkspace& kept, const Slab& slab,
                       const Head& head, const Span& span) const {
    constexpr int E = Shape::kRows;
    load_tile(dy, E, a.dy, a.dtype, head, span, slab.begin, slab.count);
    if (Delta) {
      const Rows r = dense_rows(a.residual, a.H, a.T, a.V), u = dense_rows(kept.u, a.H, a.T, a.V);
      load_tile(written, E, r, DType::f32, head, span, slab.begin, slab.count);
      load_tile(dv, E, u, DType::f32, head, span, slab.begin, slab.count);
    } else {
      load_tile(written, E, a.v, a.dtype, head, span, slab.begin, slab.count, mask_of(a, head));
    }
  }
};

__device__ __forceinline__ void load_divisor_gradients(Scalars to, const Causal& a, const BackwardWorkspace& kept,
                                           bool first_slab, Head head, Span span) {
  const bool on = first_slab && a.attn_norm != AttnNorm::none;
  const bool full = on && a.attn_norm == AttnNorm::full;
  for_steps(span, [&](int i, Index t) {
    to.d_q_divisor(i) = on ? scalars_of(kept.d_denominator, a, head)[t] : 0.0f;
    to.d_k_divisor(i) = full ? scalars_of(kept.d_kappa, a, head)[t] : 0.0f;
  });
}

// Attention normalisation, backward in time: from the rule's own gradient of k_t to that of k_t itself,
// through its divisor and through every z from here on, whose gradient is dz. Rows of q and k are as
// the rule sees them; each thread has columns of its own.
template <class E>
__device__ __forceinline__ void reverse_normalizer(float* dz, Scalars scalars, Span span,
                                     bool first_slab, int width, const E* q, const E* k, int ld,
                                     float* dk, int ld_dk) {
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float sum = dz[c];
    for (int step = 0; step < span.count; step++) {
      const int i = span.direction < 0 ? step : span.count - 1 - step;
      const float q_divisor = scalars.q_divisors()[i], k_divisor = scalars.k_divisors()[i];
      float* out = dk + i * ld_dk + c;
      sum += scalars.d_q_divisor(i) * q_divisor * to_float(q[i * ld + c]);
      *out = __fdividef(*out, k_divisor) + (first_slab ? sum : 0.0f);
      sum += scalars.d_k_divisor(i) * k_divisor * to_float(k[i * ld + c]);
    }
    dz[c] = sum;
  }
}

// Forward in time: through the divisors of q_t and, where dk is given, of k_t, to z_t and z_{t-1}.
template <class E>
__device__ __forceinline__ void ahead_normalizer(float* z, Scalars scalars, Span span,
                                   int width, const E* k, int ld, float* dq, float* dk, int ld_d) {
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float now = z[c];
    for (int i = 0; i < span.count; i++) {
      const int at = i * ld_d + c;
      const float q_divisor = scalars.q_divisors()[i], k_divisor = scalars.k_divisors()[i];
      if (dk) dk[at] = __fdividef(dk[at], k_divisor) + scalars.d_k_divisor(i) * now;
      now += to_float(k[i * ld + c]) * k_divisor;
      dq[at] = __fdividef(dq[at], q_divisor) + scalars.d_q_divisor(i) * now;
    }
    z[c] = now;
  }
}

}  // namespace gpu
}  // namespace fwm
