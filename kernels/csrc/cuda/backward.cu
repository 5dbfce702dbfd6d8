#include "launch.h"
#include "passes.cuh"

namespace fwm {
namespace gpu {
namespace {

constexpr Index kSlab = kMaxRows;  // value features that the rows of one launch hold

// Room per head for the columns that do not fit the registers: see ColumnParts.
Index places_of(const Causal& a) {
  Index places = 0;
  with_shape(a.V < kSlab ? a.V : kSlab, [&](auto shape) {
    using S = decltype(shape);
    const Columns<S> columns(a, sees_all_columns(a), 0);
    places = columns.parts > 1 ? columns.parts * ColumnParts<S>::kPlace : 0;
  });
  return places;
}

}  // namespace

Index backward_workspace(const Causal& a, const Form& form) {
  if (form.chunkwise) return chunk_backward(a, form.shared_limit, nullptr, false, nullptr);
  Workspace workspace(nullptr);
  take_backward(workspace, a, kSlab, places_of(a));
  return workspace.used();
}

void backward(const Causal& a, const Form& form, float* data, void* stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  if (form.chunkwise) {
    chunk_backward(a, form.shared_limit, data, true, stream);
    return;
  }
  Workspace workspace(data);
  const BackwardWorkspace kept = take_backward(workspace, a, kSlab, places_of(a));
  backward_values(a, kept, stream);
  backward_scalars(a, kept, stream);
  for_slabs(a, kept, kSlab, [&](const Slab& keys, const Slab& queries) {
    backward_keys(a, kept, keys, stream);
    backward_queries(a, kept, queries, stream);
  });
}

}  // namespace gpu
}  // namespace fwm
