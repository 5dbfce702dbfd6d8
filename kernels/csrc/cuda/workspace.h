// Device memory that passes work in.
#pragma once

#include "../problem.h"

namespace fwm {
namespace gpu {

// Hands out parts of one block of fp32 numbers; without one, only counts.
class Workspace {
 public:
  explicit Workspace(float* data) : data_(data) {}

  template <class T>
  T* take(bool wanted, Index count) {
    if (!wanted) return nullptr;
    T* p = data_ ? reinterpret_cast<T*>(data_ + used_) : nullptr;
    used_ += (count * Index(sizeof(T)) + 15) / 16 * 4;
    return p;
  }
  Index used() const { return used_; }

 private:
  float* data_;
  Index used_ = 0;
};

}  // namespace gpu
}  // namespace fwm
