// Registers the CUDA binding, compiled with FWM_EMULATED, for tensors on the CPU: see emulated_ops.py.
#include <torch/library.h>

namespace fwm {
void register_cuda_ops(torch::Library& library);
}

extern "C" const char* fwm_register_emulated_ops() try {
  static torch::Library library(torch::Library::IMPL, "fwm_emulated", c10::DispatchKey::CPU, __FILE__,
                                __LINE__);
  fwm::register_cuda_ops(library);
  return nullptr;
} catch (const c10::Error& error) {
  return error.what_without_backtrace();
}
