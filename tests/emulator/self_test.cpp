// Runs the kernels of the emulator's own tests by name: from Python, or as a program.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "faults.cuh"

using namespace fwm::gpu;

namespace {

using A = const Arrays&;

// Some threads, with shared memory for two arrays of 64 floats each.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), int blocks, int threads,
            std::decay_t<Parameters>... arguments) {
  FWM_GPU_LAUNCH(kernel, blocks, threads, 2 * shared_bytes<float>(64), nullptr, arguments...);
}
const float* in(A a) { return a.from<float>(); }
float* out(A a) { return a.to<float>(); }

void many_dimensions(A a) { FWM_GPU_LAUNCH(throws, dim3(2, 0), 32, 0, nullptr, out(a)); }
void shared_memory(A a) { FWM_GPU_LAUNCH(swap_in_warp, 1, 64, a.n, nullptr, in(a), out(a)); }
void large_tile(A a) {
  FWM_GPU_LAUNCH(tile_without_barrier, 1, 32, shared_bytes<float>(256), nullptr, out(a));
}

// Where n is used, it chooses between a mistake and its correction, or is an index.
constexpr struct {
  const char* name;
  void (*run)(A);
} faults[] = {
    {"divergent barriers", [](A a) { launch(divergent_barriers, 1, 64, out(a)); }},
    {"early return", [](A a) { launch(early_return, 1, 64, out(a), 40, 64); }},
    {"earliest return", [](A a) { launch(early_return, 1, 64, out(a), 0, 8); }},
    {"not in own mask", [](A a) { launch(not_in_own_mask, 1, 32, out(a)); }},
    {"absent lanes", [](A a) { launch(absent_lanes, 1, 48, out(a)); }},
    {"lanes return", [](A a) { launch(lanes_return, 1, 32, out(a)); }},
    {"two places", [](A a) { launch(two_places, 1, 32, out(a)); }},
    {"outside mask", [](A a) { launch(outside_mask, 1, 32, out(a)); }},
    {"odd width", [](A a) { launch(odd_width, 1, 32, out(a)); }},
    {"deadlock", [](A a) { launch(deadlock, 1, 32, out(a)); }},
    {"throws", [](A a) { launch(throws, 1, 64, out(a)); }},
    {"too many threads", [](A a) { launch(throws, 1, 1025, out(a)); }},
    {"no blocks", &many_dimensions},
    {"shared memory", &shared_memory},

    {"copy misaligned", [](A a) { launch(copy_of, 1, 1, in(a), 1, 8, true, true); }},
    {"copy of 12 bytes", [](A a) { launch(copy_of, 1, 1, in(a), 0, 12, true, true); }},
    {"copy to global", [](A a) { launch(copy_of, 1, 1, in(a), 0, 8, false, true); }},
    {"copy without wait", [](A a) { launch(copy_of, 1, 1, in(a), 0, 8, true, false); }},
    {"tile misaligned", [](A a) { launch(tile_at, 1, 32, in(a), 4, 16, true); }},
    {"tile of odd pitch", [](A a) { launch(tile_at, 1, 32, in(a), 0, 18, true); }},
    {"tiles of lanes", [](A a) { launch(tile_at, 1, 32, in(a), 0, 16, false); }},

    {"across blocks", [](A a) { launch(across_blocks, 3, 32, out(a), a.n); }},
    {"late write", [](A a) { launch(late_write, 3, 64, out(a), a.n); }},
    {"third reader", [](A a) { launch(third_reader, 1, 96, out(a), a.n); }},
    {"shuffle is no barrier",
     [](A a) { launch(shuffle_is_no_barrier, 1, 32, in(a), out(a)); }},
    {"wrong half", [](A a) { launch(wrong_half, 1, 32, in(a), out(a)); }},
    {"reads unwritten", [](A a) { launch(reads_unwritten, 1, 64, out(a)); }},
    {"copy without barrier", [](A a) { launch(copy_without_barrier, 1, 64, in(a), out(a)); }},
    {"tile without barrier", &large_tile},

    {"global bounds", [](A a) { launch(beyond, 1, 64, in(a), out(a), a.n, 0); }},
    {"shared bounds", [](A a) { launch(beyond, 1, 64, in(a), out(a), 0, a.n); }},
    {"misaligned", [](A a) { launch(misaligned, 1, 32, in(a), out(a), a.n); }},
    {"local bounds", [](A a) { launch(local_array, 1, 32, in(a), out(a), a.n); }},
    {"order", [](A a) { launch(record_order, 2, 64, out(a), 128); }},
};

void run(const std::string& name, A arrays) {
  for (const Kernel& kernel : kernels) {
    if (kernel.name == name) return kernel.run(arrays, nullptr);
  }
  for (const auto& fault : faults) {
    if (fault.name == name) return fault.run(arrays);
  }
  throw std::invalid_argument("no kernel " + name);
}

}  // namespace

// Returns what went wrong; an empty string if nothing did.
extern "C" const char* fwm_test_run(const char* name, void* in, void* out, int n) {
  return fwm::emulator::error_of([&] { run(name, {in, out, n}); });
}

// PROGRAM NAME N: on two arrays of 64 numbers, which end where they should.
int main(int, char** arguments) {
  std::vector<float> in(64, 1.0f), out(64, 1.0f);
  const char* error =
      fwm_test_run(arguments[1], in.data(), out.data(), std::atoi(arguments[2]));
  std::puts(*error ? error : "ok");
  return *error ? 3 : 0;
}
