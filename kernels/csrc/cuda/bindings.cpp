// The CUDA side: the only file there that knows ATen. With FWM_EMULATED the same on the CPU, for tests:
// tensors stay where they are, and tests/emulator runs the kernels.
#include <ATen/Context.h>

#include <cstdlib>

#include "../ops.h"
#include "../recurrent_ops.h"
#include "launch.h"

#if defined(FWM_EMULATED)
extern "C" std::size_t fwm_emulator_shared_limit(void);
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fwm {
namespace {

#if defined(FWM_EMULATED)
struct Launching {
  explicit Launching(const Tensor&) {}
  void* stream() const { return nullptr; }
  std::size_t shared_limit() const { return fwm_emulator_shared_limit(); }
  void check() const {}
};
#else
// The tensors' device and its current stream, for as long as this lives.
class Launching {
 public:
  explicit Launching(const Tensor& x) : guard_(x.device()) {}
  void* stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }
  std::size_t shared_limit() const {
    int bytes = 0;
    const int device = c10::cuda::current_device();
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return std::size_t(bytes);
  }
  void check() const { C10_CUDA_KERNEL_LAUNCH_CHECK(); }

 private:
  c10::cuda::CUDAGuard guard_;
};
#endif

void check_fp32(bool fp64) {
  TORCH_CHECK_TYPE(!fp64, "the CUDA kernels compute in float32, found float64: use impl='chunked', "
                   "or float32 tensors");
}
void check_features(const Features& f, bool fp64) {
  check_fp32(fp64);
  TORCH_CHECK_VALUE(f.K >= 1 && f.K <= gpu::kMaxFeatures, "the CUDA kernels take 1 to ",
                    gpu::kMaxFeatures, " key features, found K = ", f.K,
                    ": use impl='chunked', a smaller nu or smaller heads");
}

// FWM_CUDA_FORM=general or chunkwise asks for one form. Otherwise long sequences are handled chunkwise
// where tensor cores may: of fp32 tensors if the caller has allowed tf32 (torch's own switch).
gpu::Form choose(const Sequence& s, const Launching& on) {
  constexpr Index kLong = 128;
  const char* asked = std::getenv("FWM_CUDA_FORM");
  const std::string form = asked ? asked : "auto";
  TORCH_CHECK_VALUE(form == "auto" || form == "general" || form == "chunkwise",
                    "FWM_CUDA_FORM=", form, ": choose auto, general or chunkwise");
  const bool demanded = form == "chunkwise";
  gpu::Form chosen;
  chosen.shared_limit = on.shared_limit();
  if (form == "general" || (!demanded && s.a.T < kLong)) return chosen;
  const bool allowed = s.a.dtype != DType::f32 || at::globalContext().allowTF32CuBLAS();
  const bool fits = s.a.T == 0 || gpu::chunkwise_fits(s.a, chosen.shared_limit);
  TORCH_CHECK_VALUE(!demanded || allowed, "FWM_CUDA_FORM=chunkwise would round float32 tensors to tf32: "
                    "allow it with torch.backends.cuda.matmul.allow_tf32 = True, or pass bf16 or fp16");
  TORCH_CHECK_VALUE(!demanded || fits, "FWM_CUDA_FORM=chunkwise needs K and V in multiples of 16 up to "
                    "256, tiles that fit ", chosen.shared_limit, " bytes of shared memory, and bf16 or "
                    "float32 for attention normalisation; found K = ", s.a.features.K, ", V = ", s.a.V,
                    ", ", s.type, ": unset it");
  chosen.chunkwise = allowed && fits && s.a.T > 0;
  return chosen;
}

struct CUDA {
  static constexpr bool kGathersInPlace = false;

  static void forward(Sequence& s) {
    Causal& a = s.a;
    check_features(a.features, s.fp64);
    const Launching on(s.q);
    Tensor denominator, kappa;
    if (s.norm() && !a.denominator) a.denominator = (denominator = scalars(s)).data_ptr();
    if (s.full() && !a.kappa) a.kappa = (kappa = scalars(s)).data_ptr();
    const gpu::Form form = choose(s, on);
    const Tensor workspace = s.empty({gpu::forward_workspace(a, form)});
    gpu::forward(a, form, workspace.data_ptr<float>(), on.stream());
    on.check();
  }

  static void backward(Sequence& s) {
    check_features(s.a.features, s.fp64);
    TORCH_CHECK_VALUE(s.a.V > 0, "the CUDA kernels have no gradients without value features (V = 0)");
    const Launching on(s.q);
    const gpu::Form form = choose(s, on);
    const Tensor workspace = s.empty({gpu::backward_workspace(s.a, form)});
    gpu::backward(s.a, form, workspace.data_ptr<float>(), on.stream());
    on.check();
  }

  static void step(const Step& a, bool fp64, const Tensor& q) {
    check_features(a.features, fp64);
    if (a.N * a.H * a.V == 0) return;
    const Launching on(q);
    const Tensor divisors = at::empty({2 * a.N * a.H}, q.options().dtype(at::kFloat));
    gpu::step(a, divisors.data_ptr<float>(), on.stream());
    on.check();
  }

  // A sequence per block.
  static Index sequences_together(bool) { return 1; }
  template <class Problem>
  static void forward(const Problem& a, bool fp64, const Tensor& x) {
    if (!takes(a, fp64)) return;
    const Launching on(x);
    gpu::forward(a, on.shared_limit(), on.stream());
    on.check();
  }
  template <class Problem>
  static void backward(const Problem& a, bool fp64, const Tensor& x) {
    if (!takes(a, fp64)) return;
    const Launching on(x);
    const Index room = gpu::backward_workspace(a, on.shared_limit());
    const Tensor workspace = at::empty({room}, x.options());
    gpu::backward(a, on.shared_limit(), workspace.data_ptr<float>(), on.stream());
    on.check();
  }

 private:
  // Whether there is anything to do.
  template <class Problem>
  static bool takes(const Problem& a, bool fp64) {
    check_fp32(fp64);
    TORCH_CHECK_VALUE(a.d <= gpu::kMaxFeatures, "the CUDA kernels take heads of up to ", gpu::kMaxFeatures,
                      " numbers, found ", a.d, ": use impl='reference', or smaller heads");
    return a.N * a.H * a.d > 0;
  }
  static Tensor scalars(const Sequence& s) { return s.empty({s.a.N, s.a.H, s.a.T}); }
};

}  // namespace

// Registered by whoever loads this, as in ../bindings.cpp.
void register_cuda_ops(torch::Library& library) {
  Ops<CUDA>::add_to(library);
  add_recurrent_ops<CUDA>(library);
}

}  // namespace fwm
