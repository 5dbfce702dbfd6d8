// The threads of the block that runs: who may go on, who waits where.
#pragma once

#include <cstdint>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "observer.h"

namespace fwm {
namespace emulator {

struct AsyncCopy {
  void* shared;
  const void* source;
  int bytes;
  const void* pc;
  Site site;
};

// What a switch touches, in one cache line.
struct alignas(64) Thread {
  Fiber fiber;
  uint3 index;
};

// Lanes that have come to a warp-wide operation and wait for the rest of the mask.
struct Gathering {
  const char* name;
  Site site;
  unsigned mask, arrived;
  Action action;
  void* arguments[32];
};

struct Warp {
  unsigned live = 0;        // lanes that exist and have not returned
  unsigned open = 0;        // lanes that have opened a gathering that is not complete
  Gathering gathering[32];  // by the lane that opened it
};

// Threads in the order in which they will go on.
class ReadyQueue {
 public:
  void reset(unsigned capacity);
  bool empty() const { return head_ == tail_; }
  void push(unsigned thread) { ring_[tail_++ & last_] = thread; }
  void push_front(unsigned thread) { ring_[--head_ & last_] = thread; }
  unsigned pop() { return ring_[head_++ & last_]; }

 private:
  std::vector<unsigned> ring_;
  unsigned head_ = 0, tail_ = 0, last_ = 0;
};

class Block {
 public:
  // Threads of all blocks of a launch; `body` runs as each of them.
  void begin_launch(dim3 size, void (*body)(const void*), const void* parameters);
  // Runs a block to its end, or throws what one of its threads threw.
  void run();

  void barrier(Site site);
  void gather(const char* name, unsigned mask, void* argument, Action action, bool is_barrier,
              Site site);

  // The running thread's, not waited for yet.
  std::vector<AsyncCopy>& copies() { return copies_[running_number()]; }
  unsigned size() const { return static_cast<unsigned>(threads_.size()); }
  const Stacks& stacks() const { return stacks_; }

 private:
  static unsigned running_number() { return static_cast<unsigned>(running_thread); }
  static void thread_main();

  void prepare(unsigned thread);
  void leave();
  void resume(unsigned thread, Fiber& from, bool last);
  void wait();
  void release_barrier();
  void release_lanes(unsigned lanes, unsigned first_thread);
  Gathering& find(Warp& warp, const char* name, unsigned mask, Action action, Site site);
  void shuffle(std::vector<unsigned>& order);
  std::string deadlock() const;

  Stacks stacks_;
  std::vector<Thread> threads_;
  std::vector<std::vector<AsyncCopy>> copies_;
  std::vector<Warp> warps_;
  ReadyQueue ready_;
  std::vector<unsigned> order_;  // of threads, at the start and after a barrier
  std::mt19937_64 random_;
  Fiber launcher_;
  dim3 size_;
  void (*body_)(const void*) = nullptr;
  const void* parameters_ = nullptr;
  std::exception_ptr error_;
  unsigned live_ = 0;     // threads that have not returned
  unsigned arrived_ = 0;  // threads at the barrier
  Site barrier_{};        // where it is
};

extern Block block;

// Throws Error: the text, printf-like, and which thread of which block of which kernel.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);
// FILE:LINE, the file without its folder.
std::string place(Site site);

}  // namespace emulator
}  // namespace fwm
