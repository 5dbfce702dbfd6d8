// What -fsanitize=thread makes a kernel call, for an observer instead of ThreadSanitizer's library:
// the flag is given when kernels are compiled, and not when they are linked.
#include <cstddef>
#include <cstdint>

#include "observer.h"

namespace {

using namespace fwm::emulator;

inline void traced(void* memory, std::size_t bytes, bool write, void* pc) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  if (running_thread < 0 || is_private(address)) return;
  observer->on_access({address, bytes, write, reinterpret_cast<std::uintptr_t>(pc)});
}

}  // namespace

#define FWM_HOOK(name, bytes, write) \
  void __tsan_##name(void* p) { traced(p, bytes, write, __builtin_return_address(0)); }
#define FWM_HOOKS(bytes)                        \
  FWM_HOOK(read##bytes, bytes, false)           \
  FWM_HOOK(write##bytes, bytes, true)           \
  FWM_HOOK(unaligned_read##bytes, bytes, false) \
  FWM_HOOK(unaligned_write##bytes, bytes, true) \
  FWM_HOOK(volatile_read##bytes, bytes, false)  \
  FWM_HOOK(volatile_write##bytes, bytes, true)

// Atomics: kernels have none; host code beside them may.
#define FWM_ATOMICS(bits, T)                                                                      \
  T __tsan_atomic##bits##_load(const volatile T* p, int) {                                        \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                  \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile T* p, T x, int) {                                     \
    __atomic_store_n(p, x, __ATOMIC_SEQ_CST);                                                     \
  }                                                                                               \
  T __tsan_atomic##bits##_exchange(volatile T* p, T x, int) {                                     \
    return __atomic_exchange_n(p, x, __ATOMIC_SEQ_CST);                                           \
  }                                                                                               \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T x, int) {                                    \
    return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);                                            \
  }                                                                                               \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T x, int) {                                    \
    return __atomic_fetch_sub(p, x, __ATOMIC_SEQ_CST);                                            \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T x, int, int) {  \
    return __atomic_compare_exchange_n(p, expected, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }

extern "C" {

FWM_HOOKS(1)
FWM_HOOKS(2)
FWM_HOOKS(4)
FWM_HOOKS(8)
FWM_HOOKS(16)
void __tsan_read_range(void* p, std::size_t bytes) {
  traced(p, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, std::size_t bytes) {
  traced(p, bytes, true, __builtin_return_address(0));
}

FWM_ATOMICS(8, std::int8_t)
FWM_ATOMICS(32, std::int32_t)
FWM_ATOMICS(64, std::int64_t)

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}  // extern "C"
