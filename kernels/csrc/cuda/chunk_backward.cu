#include "chunk_plan.cuh"
#include "passes.cuh"

namespace fwm {
namespace gpu {
namespace {

template <class E>
void backward_of(const Causal& a, const ChunkPlan& plan, const BackwardWorkspace& kept,
                 const ChunkMatrices<E>& matrices, cudaStream_t stream) {
  const unsigned heads = unsigned(a.N * a.H);
  const bool delta = bool(a.beta);
  const dim3 threads(kChunkThreads);
  launch_prepare<E>(a, plan.values, matrices, stream);
  FWM_GPU_LAUNCH(chunk_values_kernel<E>,
                 dim3(heads, unsigned((a.V + plan.values.columns - 1) / plan.values.columns)), threads,
                 ChunkValuesTiles<E>::bytes(a, plan.values), stream, a, plan.values, kept, matrices);
  backward_scalars(a, kept, stream);
  FWM_GPU_LAUNCH(chunk_prepare_values_kernel<E>, dim3(heads, unsigned(plan.prepare_values.count)), threads,
                 PrepareValuesTiles<E>::bytes(a, delta, plan.values.C, plan.prepare_values.rows), stream,
                 a, plan.prepare_values, kept, matrices);
  const Chunks& cut = plan.by_value;
  const dim3 grid(heads, unsigned((a.features.K + cut.columns - 1) / cut.columns));
  for_slabs(a, kept, cut.rows, [&](const Slab& keys, const Slab& queries) {
    FWM_GPU_LAUNCH(chunk_keys_kernel<E>, grid, threads, ChunkByValueTiles<E>::bytes(a, true, cut), stream,
                   a, cut, kept, keys, matrices);
    FWM_GPU_LAUNCH(chunk_queries_kernel<E>, grid, threads, ChunkByValueTiles<E>::bytes(a, false, cut),
                   stream, a, cut, kept, queries, matrices);
  });
}

}  // namespace

Index chunk_backward(const Causal& a, std::size_t shared_limit, float* data, bool run,
                     cudaStream_t stream) {
  Index used = 0;
  with_operand(a.dtype, [&](auto operand) {
    using E = decltype(operand);
    const ChunkPlan plan = ChunkPlanner<E>(a, shared_limit).plan();
    Workspace workspace(data);
    const BackwardWorkspace kept = take_backward(workspace, a, plan.by_value.rows, 0);
    const ChunkMatrices<E> matrices = take_matrices<E>(workspace, a, plan.values, true);
    used = workspace.used();
    if (run) backward_of<E>(a, plan, kept, matrices, stream);
  });
  return used;
}

}  // namespace gpu
}  // namespace fwm
