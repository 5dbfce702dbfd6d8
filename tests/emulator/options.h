// How the emulator runs kernels, and what it can say afterwards: for C++, and for Python's ctypes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace fwm {
namespace emulator {

// What is wrong with a kernel or its launch.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { forward, reverse, random };

struct Options {
  Order order = Order::forward;  // of blocks, and of the threads that could go on
  std::uint64_t seed = 1;        // of the random order
  std::size_t shared_limit = 227 << 10;  // bytes a block may have: H100; A100 has 163 KiB
  bool fill_shared = true;               // with NaN, before every block
  bool execute = true;                   // or only check and note launches: pointers may be wrong
  // Mutation tests: the __syncthreads or __syncwarp to ignore, as FILE:LINE; FILE is a path's end.
  std::string skip;
};
extern Options options;

// Runs `work`; returns what it threw as text, empty if nothing. Valid until the next call.
template <class Work>
const char* error_of(const Work& work) {
  static std::string message;
  message.clear();
  try {
    work();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace emulator
}  // namespace fwm

extern "C" {

// Sets one field of Options by its name. Returns what is wrong, or an empty string.
const char* fwm_emulator_set(const char* name, const char* value);
// Options as they were at first, no counts, no findings.
void fwm_emulator_reset(void);
// What a GPU would say of itself.
std::size_t fwm_emulator_shared_limit(void);

// The launches since the last reset, one a line:
// "GRID_X GRID_Y GRID_Z THREADS SHARED_BYTES KERNEL", with the kernel's mangled name.
const char* fwm_emulator_launches(void);

// The barriers that ran, one a line: "__syncthreads FILE:LINE COUNT"; "skipped" before those that
// were to be ignored. Valid until the next call, like the report.
const char* fwm_emulator_barriers(void);

// What the race detector or the memory report, if one is linked, found since the last reset: how
// many, and as text, one a line. See race.cpp and memory.cpp.
std::size_t fwm_emulator_finding_count(void);
const char* fwm_emulator_report(void);

}  // extern "C"
