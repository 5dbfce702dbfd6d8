// Which GPUs nvcc compiled the kernels for, in its own words.
#include <string>

#include "launch.h"

// What setup.py asks for as PTX too, in the same numbers (9.0 is 900): nvcc does not tell.
#if !defined(FWM_CUDA_PTX)
#define FWM_CUDA_PTX 0
#endif

namespace fwm {
namespace gpu {

const char* archs() {
#if defined(__CUDA_ARCH_LIST__)
  static const std::string list = [] {
    std::string text;
    for (int arch : {__CUDA_ARCH_LIST__}) {
      text += (text.empty() ? "" : " ") + std::to_string(arch / 100) + "." +
              std::to_string(arch / 10 % 10);
      for (int ptx : {FWM_CUDA_PTX}) {
        if (ptx == arch) text += "+PTX";
      }
    }
    return text;
  }();
  return list.c_str();
#else
  return "";  // the emulator
#endif
}

}  // namespace gpu
}  // namespace fwm
