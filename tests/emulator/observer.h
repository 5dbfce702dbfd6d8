// What watches the accesses of kernels: the race detector or the memory report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fwm {
namespace emulator {

struct Range {
  std::uintptr_t begin = 0, end = 0;

  Range() = default;
  Range(const void* start, std::size_t bytes)
      : begin(reinterpret_cast<std::uintptr_t>(start)), end(begin + bytes) {}
  bool contains(std::uintptr_t address) const { return address >= begin && address < end; }
};

struct Access {
  std::uintptr_t address;
  std::size_t bytes;
  bool write;
  std::uintptr_t pc;  // the return address of a call in the kernel
};

class Observer {
 public:
  virtual ~Observer() = default;

  virtual void begin_launch(Range shared) = 0;
  virtual void begin_block(unsigned block) = 0;
  // All threads of the block are at a barrier; all lanes in `mask` of the warp are at one.
  virtual void on_block_barrier() {}
  virtual void on_warp_barrier(unsigned /*warp*/, unsigned /*mask*/) {}
  // By the running thread, to memory that other threads can see.
  virtual void on_access(const Access& access) = 0;

  virtual std::size_t finding_count() = 0;
  virtual std::string report() = 0;
  virtual void reset() = 0;
};

// Set by the observer that is linked in, before main().
extern Observer* observer;

// The running thread's number in its block; -1 outside kernels.
extern int running_thread;
// Memory of one thread (stacks), or of no thread (parameters, builtins).
bool is_private(std::uintptr_t address);

// Tells the observer of what is not compiled into a kernel.
void note_access(const void* address, std::size_t bytes, bool write, const void* pc);

}  // namespace emulator
}  // namespace fwm
