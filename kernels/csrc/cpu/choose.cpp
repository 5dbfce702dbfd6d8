#include <cstdlib>
#include <cstring>

#include "table.h"

namespace fwm {

static bool supported(const Kernels& kernels) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (&kernels == &kernels_avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("fma");
  }
  if (&kernels == &kernels_avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return &kernels == &kernels_baseline;
}

const Kernels* choose_kernels() {
  static const Kernels* const known[] = {
#if defined(__x86_64__)
      &kernels_avx512, &kernels_avx2,
#endif
      &kernels_baseline};
  const char* wanted = std::getenv("FWM_CPU_ISA");
  for (const Kernels* kernels : known) {
    if (wanted && *wanted && std::strcmp(wanted, kernels->isa) != 0) continue;
    if (supported(*kernels)) return kernels;
  }
  return nullptr;
}

}  // namespace fwm
