// The dynamic shared memory of the block that runs.
#pragma once

#include <cstddef>

#include "observer.h"

namespace fwm {
namespace emulator {

class SharedSpace {
 public:
  ~SharedSpace();
  void begin_launch(std::size_t bytes);
  void begin_block(bool fill);

  std::size_t asked() const { return asked_; }
  Range range() const { return Range(memory_, asked_ + gaps()); }
  // The array number `index` of a kernel, `offset` bytes after the first. Under AddressSanitizer
  // there are red zones between arrays, and only arrays that were asked for may be touched.
  void* array(std::size_t offset, std::size_t bytes, int index);

 private:
  static std::size_t gaps();
  unsigned char* memory_ = nullptr;
  std::size_t asked_ = 0, mapped_ = 0;
};

}  // namespace emulator
}  // namespace fwm
