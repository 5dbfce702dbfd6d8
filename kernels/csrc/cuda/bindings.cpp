// The CUDA side: the only file there that knows ATen. With FWM_EMULATED the same on the CPU, for tests:
// tensors stay where they are, and tests/emulator runs the kernels.
#include <ATen/Context.h>

#include "../ops.h"
#include "launch.h"

#if !defined(FWM_EMULATED)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fwm {
namespace {

#if defined(FWM_EMULATED)
struct Launching {
  explicit Launching(const Tensor&) {}
  void* stream() const { return nullptr; }
  void check() const {}
};
#else
// The tensors' device and its current stream, for as long as this lives.
class Launching {
 public:
  explicit Launching(const Tensor& x) : guard_(x.device()) {}
  void* stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }
  void check() const { C10_CUDA_KERNEL_LAUNCH_CHECK(); }

 private:
  c10::cuda::CUDAGuard guard_;
};
#endif

void check(const Features& f, bool fp64) {
  TORCH_CHECK_TYPE(!fp64, "the CUDA kernels compute in float32, found float64: use impl='chunked', "
                   "or float32 tensors");
  TORCH_CHECK_VALUE(f.K >= 1 && f.K <= gpu::kMaxFeatures, "the CUDA kernels take 1 to ",
                    gpu::kMaxFeatures, " key features, found K = ", f.K,
                    ": use impl='chunked', a smaller nu or smaller heads");
}

struct CUDA {
  static constexpr bool kGathersInPlace = false;

  static void forward(Sequence& s) {
    Causal& a = s.a;
    check(a.features, s.fp64);
    const Launching on(s.q);
    Tensor denominator, kappa;
    if (s.norm() && !a.denominator) a.denominator = (denominator = scalars(s)).data_ptr();
    if (s.full() && !a.kappa) a.kappa = (kappa = scalars(s)).data_ptr();
    gpu::forward(a, on.stream());
    on.check();
  }

  static void backward(Sequence& s) {
    check(s.a.features, s.fp64);
    TORCH_CHECK_VALUE(s.a.V > 0, "the CUDA kernels have no gradients without value features (V = 0)");
    const Launching on(s.q);
    const Tensor workspace = s.empty({gpu::backward_workspace(s.a)});
    gpu::backward(s.a, workspace.data_ptr<float>(), on.stream());
    on.check();
  }

  static void step(const Step& a, bool fp64, const Tensor& q) {
    check(a.features, fp64);
    if (a.N * a.H * a.V == 0) return;
    const Launching on(q);
    const Tensor divisors = at::empty({2 * a.N * a.H}, q.options().dtype(at::kFloat));
    gpu::step(a, divisors.data_ptr<float>(), on.stream());
    on.check();
  }

 private:
  static Tensor scalars(const Sequence& s) { return s.empty({s.a.N, s.a.H, s.a.T}); }
};

}  // namespace

// Registered by whoever loads this, as in ../bindings.cpp.
void register_cuda_ops(torch::Library& library) { Ops<CUDA>::add_to(library); }

}  // namespace fwm
