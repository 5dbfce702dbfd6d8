// How the chunkwise kernels of a problem cut it up, so that their tiles fit the shared memory.
#pragma once

#include "chunk_by_value.cuh"
#include "chunk_forward.cuh"
#include "chunk_values.cuh"
#include "launch.h"
#include "workspace.h"

namespace fwm {
namespace gpu {

// Call run(E{}) with the type of operands.
template <class Run>
void with_operand(DType dtype, Run run) {
  if (dtype == DType::bf16) return run(Bf16{});
  if (dtype == DType::f16) return run(Half{});
  run(float{});
}

// The cuts of every kernel; count is zero where something does not fit. All have the same chunks.
struct ChunkPlan {
  Chunks forward, prepare_values, values, by_value;

  bool fits() const { return forward.count > 0; }
};

template <class E>
class ChunkPlanner {
 public:
  ChunkPlanner(const Causal& a, std::size_t limit) : a_(a), limit_(limit) {}

  ChunkPlan plan() const {
    for (int C = sizeof(E) == 2 ? 64 : 32; C >= kTile; C /= 2) {
      ChunkPlan plan;
      if (PrepareTiles<E>::bytes(a_, C) <= limit_ && plan_forward(C, plan.forward) &&
          plan_values(C, plan.values) && plan_prepare(C, plan.prepare_values) &&
          plan_by_value(C, plan.by_value)) {
        return plan;
      }
    }
    return {};
  }

 private:
  static constexpr int kColumns = 64;  // enough for all warps of a block

  Chunks chunks(int C) const {
    Chunks c;
    c.C = C;
    c.count = int((a_.T + C - 1) / C);
    c.rows = int(a_.V);
    return c;
  }
  int wide(Index columns) const { return columns < kColumns ? int(columns) : kColumns; }

  bool plan_forward(int C, Chunks& c) const {
    c = chunks(C);
    c.columns = wide(a_.V);
    while (c.columns > 0 && ChunkForwardTiles<E>::bytes(a_, c) > limit_) c.columns -= kTile;
    return c.columns > 0;
  }
  bool plan_values(int C, Chunks& c) const {
    c = chunks(C);
    c.columns = wide(a_.V);
    while (c.columns > 0 && ChunkValuesTiles<E>::bytes(a_, c) > limit_) c.columns -= kTile;
    return c.columns > 0;
  }
  bool plan_prepare(int C, Chunks& c) const {
    c = chunks(C);
    while (c.rows > 0 && PrepareValuesTiles<E>::bytes(a_, bool(a_.beta), C, c.rows) > limit_) {
      c.rows -= kTile;
    }
    return c.rows > 0;
  }
  // Values in few, equal parts: each part goes through the whole sequence.
  bool plan_by_value(int C, Chunks& c) const {
    c = chunks(C);
    c.columns = sees_all_columns(a_) ? int(a_.features.K) : wide(a_.features.K);
    const int tiles = int(a_.V) / kTile;
    for (int parts = 1; parts <= tiles; parts++) {
      c.rows = (tiles + parts - 1) / parts * kTile;
      if (ChunkByValueTiles<E>::bytes(a_, false, c) <= limit_) return true;
    }
    return false;
  }

  const Causal& a_;
  std::size_t limit_;
};

template <class E>
ChunkMatrices<E> take_matrices(Workspace& workspace, const Causal& a, const Chunks& chunks,
                               bool backward) {
  const Index count = a.N * a.H * chunks.count * chunks.C * chunks.C;
  const bool delta = bool(a.beta);
  ChunkMatrices<E> m;
  m.reads = workspace.take<E>(true, count);
  m.inverse = workspace.take<E>(delta, count);
  m.keys = workspace.take<E>(delta && backward, count);
  m.writes = workspace.take<E>(backward, count);
  m.erased = workspace.take<E>(delta && backward, count);
  return m;
}

template <class E>
void launch_prepare(const Causal& a, const Chunks& chunks, const ChunkMatrices<E>& matrices,
                    cudaStream_t stream) {
  const dim3 grid(unsigned(a.N * a.H), unsigned(chunks.count));
  FWM_GPU_LAUNCH(chunk_prepare_kernel<E>, grid, dim3(kChunkThreads), PrepareTiles<E>::bytes(a, chunks.C),
                 stream, a, chunks, matrices);
}

}  // namespace gpu
}  // namespace fwm
