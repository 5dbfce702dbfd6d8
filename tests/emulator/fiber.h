// Fibers: functions with stacks of their own that hand control to one another.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(FWM_EMULATOR_UCONTEXT)
#define FWM_UCONTEXT 1
#include <ucontext.h>
#endif

namespace fwm {
namespace emulator {

class Fiber {
 public:
  // Will start at entry(), which must not return, when first switched to.
  void prepare(void* stack, std::size_t bytes, void (*entry)());
  // Goes on in `to` until something switches back; never, if `last`.
  void switch_to(Fiber& to, bool last = false);
  // The first thing a fiber has to call. It learns where the launching thread's stack is.
  static void started(Fiber& launcher);

 private:
#ifdef FWM_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  void* sanitizer_state_ = nullptr;
  const void* stack_ = nullptr;
  std::size_t stack_bytes_ = 0;
};

// Equal stacks in one mapping, an inaccessible page below each: one that overflows stops there.
class Stacks {
 public:
  ~Stacks();
  void reserve(unsigned count);
  void* at(unsigned i) const;
  static std::size_t bytes();
  const void* begin() const { return memory_; }
  std::size_t total_bytes() const { return total_; }

 private:
  void release();
  unsigned char* memory_ = nullptr;
  std::size_t total_ = 0;
};

}  // namespace emulator
}  // namespace fwm
