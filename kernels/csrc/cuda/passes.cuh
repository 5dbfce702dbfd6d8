// The passes that forward and backward consist of, each in a translation unit of its own, and what they
// leave for each other.
#pragma once

#include "by_value.cuh"
#include "workspace.h"

namespace fwm {
namespace gpu {

void normalizer(const Causal&, const Index* rows, cudaStream_t);
void backward_values(const Causal&, const BackwardWorkspace&, cudaStream_t);
void backward_scalars(const Causal&, const BackwardWorkspace&, cudaStream_t);
void backward_keys(const Causal&, const BackwardWorkspace&, const Slab&, cudaStream_t);
void backward_queries(const Causal&, const BackwardWorkspace&, const Slab&, cudaStream_t);

Index chunk_forward_workspace(const Causal&, std::size_t shared_limit);
void chunk_forward(const Causal&, std::size_t shared_limit, float* workspace, cudaStream_t);
// Returns how many fp32 numbers the workspace has; runs only if told to.
Index chunk_backward(const Causal&, std::size_t shared_limit, float* workspace, bool run, cudaStream_t);

// `slab` values are handled in one launch; `places` is the room for parts of states, per head.
inline BackwardWorkspace take_backward(Workspace& workspace, const Causal& a, Index slab, Index places) {
  const Index heads = a.N * a.H, d = a.features.d;
  const bool delta = bool(a.beta), half = a.dtype != DType::f32, slabs = a.V > slab;
  BackwardWorkspace kept;
  kept.u = workspace.take<float>(delta, heads * a.T * a.V);
  kept.d_denominator = workspace.take<float>(a.attn_norm != AttnNorm::none, heads * a.T);
  kept.d_kappa = workspace.take<float>(a.attn_norm == AttnNorm::full, heads * a.T);
  kept.dq = workspace.take<float>(half && slabs, heads * a.T * d);
  kept.dk = workspace.take<float>(half && (delta || slabs), heads * a.T * d);
  kept.places = workspace.take<float>(places > 0, heads * places);
  return kept;
}

// Call run(slab for the keys, slab for the queries) for all values, `size` at a time: both add to dk for
// the delta rule, and all slabs to both gradients.
template <class Run>
void for_slabs(const Causal& a, const BackwardWorkspace& kept, Index size, Run run) {
  const bool delta = bool(a.beta);
  for (Index begin = 0; begin < a.V; begin += size) {
    Slab keys;
    keys.begin = int(begin), keys.count = int(a.V - begin < size ? a.V - begin : size);
    keys.first = begin == 0;
    const bool last = begin + size >= a.V;
    Slab queries = keys;
    keys.dk = {a.dk, a.dtype, kept.dk, !keys.first, last && !delta};
    queries.dk = {a.dk, a.dtype, kept.dk, true, last};
    queries.dq = {a.dq, a.dtype, kept.dq, !keys.first, last};
    run(keys, queries);
  }
}

}  // namespace gpu
}  // namespace fwm
