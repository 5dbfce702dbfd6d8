// The kernels of one instruction set, as functions on work items [first, last).
#pragma once

#include "../problem.h"

namespace fwm {

struct Kernels {
  const char* isa;
  int vector_bytes;
  // Indexed by [fp64][delta].
  void (*causal_forward[2][2])(const Causal&, Index columns, Index first, Index last);
  void (*causal_backward[2][2])(const Causal&, Index first, Index last);
  // Indexed by [fp64].
  void (*step[2])(const Step&, Index first, Index last);
  void (*map_rows[2])(const Map&, Index first, Index last);
  void (*favor_rows[2])(const Favor&, Index first, Index last);
  void (*rescaled_forward[2])(const Rescaled&, Index first, Index last);
  void (*rescaled_backward[2])(const Rescaled&, Index first, Index last);
  void (*recurrent_forward[2])(const Recurrent&, Index first, Index last);
  void (*recurrent_backward[2])(const Recurrent&, Index first, Index last);
  void (*self_referential_forward[2])(const SelfReferential&, Index first, Index last);
  void (*self_referential_backward[2])(const SelfReferential&, Index first, Index last);
};

#if defined(__x86_64__)
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx2;
#endif
extern const Kernels kernels_baseline;

// What this machine runs fastest, or what FWM_CPU_ISA = avx512 | avx2 | baseline asks for; null if it
// asks for what the machine has not got.
const Kernels* choose_kernels();

}  // namespace fwm
