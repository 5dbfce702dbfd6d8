// Which passes a backward consists of, and the memory they share.
#include "by_value.cuh"
#include "launch.h"

namespace fwm {
namespace gpu {

void backward_values(const Causal&, const BackwardWorkspace&, cudaStream_t);
void backward_keys(const Causal&, const BackwardWorkspace&, const Slab&, cudaStream_t);
void backward_queries(const Causal&, const BackwardWorkspace&, const Slab&, cudaStream_t);

namespace {

constexpr Index kSlab = kMaxRows;  // value features that the rows of one launch hold

// Hand out `workspace`, or with null only count; returns how many numbers that is.
Index share_out(const Causal& a, float* workspace, BackwardWorkspace& kept) {
  const Index heads = a.N * a.H, d = a.features.d;
  const bool delta = bool(a.beta), half = a.dtype != DType::f32, slabs = a.V > kSlab;
  Index used = 0;
  const auto take = [&](bool wanted, Index count) -> float* {
    if (!wanted) return nullptr;
    float* p = workspace ? workspace + used : nullptr;
    used += (count + 3) / 4 * 4;
    return p;
  };
  kept.u = take(delta, heads * a.T * a.V);
  kept.d_denominator = take(a.attn_norm != AttnNorm::none, heads * a.T);
  kept.d_kappa = take(a.attn_norm == AttnNorm::full, heads * a.T);
  kept.dq = take(half && slabs, heads * a.T * d);
  kept.dk = take(half && (delta || slabs), heads * a.T * d);
  Index places = 0;
  with_shape(a.V < kSlab ? a.V : kSlab, [&](auto shape) {
    const Columns<decltype(shape)> columns(a, sees_all_columns(a), 0);
    places = columns.parts > 1 ? columns.parts * ColumnParts<decltype(shape)>::kPlace : 0;
  });
  kept.places = take(places > 0, heads * places);
  return used;
}

}  // namespace

Index backward_workspace(const Causal& a) {
  BackwardWorkspace kept;
  return share_out(a, nullptr, kept);
}

void backward(const Causal& a, float* workspace, void* stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const bool delta = bool(a.beta);
  BackwardWorkspace kept;
  share_out(a, workspace, kept);
  backward_values(a, kept, stream);
  for (Index begin = 0; begin < a.V; begin += kSlab) {
    Slab slab;
    slab.begin = int(begin), slab.count = int(a.V - begin < kSlab ? a.V - begin : kSlab);
    slab.first = begin == 0;
    const bool last = begin + kSlab >= a.V;
    slab.dk = {a.dk, a.dtype, kept.dk, !slab.first, last && !delta};
    backward_keys(a, kept, slab, stream);
    slab.dk = {a.dk, a.dtype, kept.dk, true, last};
    slab.dq = {a.dq, a.dtype, kept.dq, !slab.first, last};
    backward_queries(a, kept, slab, stream);
  }
}

}  // namespace gpu
}  // namespace fwm
