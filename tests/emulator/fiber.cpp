#include "fiber.h"

#include <sys/mman.h>

#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef FWM_UCONTEXT
// Saves what a call must keep, swaps the stacks, restores. 20 ns; swapcontext takes 130, because it
// asks the kernel for the signal mask.
extern "C" void fwm_switch_stack(void** save, void* load);
asm(R"(
.pushsection .text
.globl fwm_switch_stack
.hidden fwm_switch_stack
.type fwm_switch_stack, @function
fwm_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fwm_switch_stack, . - fwm_switch_stack
.popsection
)");
#endif

namespace fwm {
namespace emulator {

void Fiber::prepare(void* stack, std::size_t bytes, void (*entry)()) {
  stack_ = stack;
  stack_bytes_ = bytes;
  sanitizer_state_ = nullptr;
#ifdef FWM_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  void** top = reinterpret_cast<void**>(static_cast<unsigned char*>(stack) + bytes);
  *--top = nullptr;  // entry()'s return address: there is none
  *--top = reinterpret_cast<void*>(entry);
  constexpr int saved_registers = 6;
  for (int i = 0; i < saved_registers; i++) *--top = nullptr;
  stack_pointer_ = top;
#endif
}

void Fiber::switch_to(Fiber& to, [[maybe_unused]] bool last) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(last ? nullptr : &sanitizer_state_, to.stack_, to.stack_bytes_);
#endif
#ifdef FWM_UCONTEXT
  swapcontext(&context_, &to.context_);
#else
  fwm_switch_stack(&stack_pointer_, to.stack_pointer_);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(sanitizer_state_, nullptr, nullptr);
#endif
}

void Fiber::started([[maybe_unused]] Fiber& launcher) {
#ifdef __SANITIZE_ADDRESS__
  const void* stack;
  std::size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  // Only the first fiber of a launch comes from the launcher; the others come from fibers.
  if (launcher.stack_ == nullptr) {
    launcher.stack_ = stack;
    launcher.stack_bytes_ = bytes;
  }
#endif
}

namespace {
constexpr std::size_t kGuard = 4096;
}

std::size_t Stacks::bytes() {
#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
  return 252 << 10;  // frames have red zones, or every temporary
#else
  return 124 << 10;
#endif
}

void Stacks::reserve(unsigned count) {
  const std::size_t each = kGuard + bytes();
#ifdef __SANITIZE_ADDRESS__
  // Frames of threads that an error ended have left red zones behind.
  if (memory_) __asan_unpoison_memory_region(memory_, total_);
#endif
  if (total_ >= each * count) return;
  release();
  void* memory = mmap(nullptr, each * count, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<unsigned char*>(memory);
  total_ = each * count;
  for (unsigned i = 0; i < count; i++) mprotect(memory_ + each * i, kGuard, PROT_NONE);
}

void* Stacks::at(unsigned i) const { return memory_ + (kGuard + bytes()) * i + kGuard; }

void Stacks::release() {
  if (memory_) munmap(memory_, total_);
  memory_ = nullptr;
  total_ = 0;
}
Stacks::~Stacks() { release(); }

}  // namespace emulator
}  // namespace fwm
