// For nvcc, which makes kernels of what is used.
#include "kernels.cuh"

const fwm::gpu::Kernel* fwm_test_kernels() { return fwm::gpu::kernels; }
