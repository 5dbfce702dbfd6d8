#include "shared_space.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace fwm {
namespace emulator {

namespace {
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kGap = 256;  // keeps arrays in their banks, and aligned
constexpr std::size_t kArrays = 64;
#else
constexpr std::size_t kGap = 0, kArrays = 0;
#endif
}  // namespace

std::size_t SharedSpace::gaps() { return kGap * kArrays; }

void SharedSpace::begin_launch(std::size_t bytes) {
  asked_ = bytes;
  if (bytes + gaps() <= mapped_) return;
  if (memory_) munmap(memory_, mapped_);
  mapped_ = (bytes + gaps() + 4095) / 4096 * 4096;
  void* memory =
      mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<unsigned char*>(memory);
}

void SharedSpace::begin_block(bool fill) {
  if (!memory_) return;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(memory_, mapped_);
#endif
  // All ones is NaN in every floating type.
  if (fill) std::memset(memory_, 0xff, asked_ + gaps());
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(memory_, mapped_);
#endif
}

void* SharedSpace::array(std::size_t offset, std::size_t bytes, int index) {
  void* start = memory_ + offset + kGap * std::min<std::size_t>(index, kArrays);
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(start, bytes);
#else
  (void)bytes;
#endif
  return start;
}

SharedSpace::~SharedSpace() {
#ifdef __SANITIZE_ADDRESS__
  if (memory_) __asan_unpoison_memory_region(memory_, mapped_);
#endif
  if (memory_) munmap(memory_, mapped_);
}

}  // namespace emulator
}  // namespace fwm
