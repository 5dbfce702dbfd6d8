#include "chunk_plan.cuh"

namespace fwm {
namespace gpu {

bool chunkwise_fits(const Causal& a, std::size_t shared_limit) {
  const auto size = [](Index n) { return n >= kTile && n <= 256 && n % kTile == 0; };
  bool fits = false;
  // A query divided by a small z_t . q_t may leave the range of fp16.
  if (a.dtype == DType::f16 && a.attn_norm != AttnNorm::none) return false;
  if (a.dtype == DType::f64 || !size(a.features.K) || !size(a.V) || a.T == 0) return false;
  with_operand(a.dtype, [&](auto operand) {
    fits = ChunkPlanner<decltype(operand)>(a, shared_limit).plan().fits();
  });
  return fits;
}

Index chunk_forward_workspace(const Causal& a, std::size_t shared_limit) {
  Index used = 0;
  with_operand(a.dtype, [&](auto operand) {
    using E = decltype(operand);
    Workspace workspace(nullptr);
    take_matrices<E>(workspace, a, ChunkPlanner<E>(a, shared_limit).plan().forward, false);
    used = workspace.used();
  });
  return used;
}

void chunk_forward(const Causal& a, std::size_t shared_limit, float* data, cudaStream_t stream) {
  with_operand(a.dtype, [&](auto operand) {
    using E = decltype(operand);
    const Chunks chunks = ChunkPlanner<E>(a, shared_limit).plan().forward;
    Workspace workspace(data);
    const ChunkMatrices<E> matrices = take_matrices<E>(workspace, a, chunks, false);
    launch_prepare<E>(a, chunks, matrices, stream);
    const dim3 grid(unsigned(a.N * a.H), unsigned((a.V + chunks.columns - 1) / chunks.columns));
    FWM_GPU_LAUNCH(chunk_forward_kernel<E>, grid, dim3(kChunkThreads),
                   ChunkForwardTiles<E>::bytes(a, chunks), stream, a, chunks, matrices);
  });
}

}  // namespace gpu
}  // namespace fwm
