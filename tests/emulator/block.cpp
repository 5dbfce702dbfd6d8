#include "block.h"

#include <algorithm>
#include <cstring>

#include "barriers.h"
#include "observer.h"

namespace fwm {
namespace emulator {

int running_thread = -1;
Block block;

namespace {
bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}
}  // namespace

std::string place(Site site) {
  return std::string(file_name(site.file)) + ":" + std::to_string(site.line);
}

void ReadyQueue::reset(unsigned capacity) {
  // A power of two, so that positions wrap around by a mask.
  unsigned size = 1;
  while (size < capacity) size *= 2;
  ring_.resize(size);
  head_ = tail_ = 0;
  last_ = size - 1;
}

void Block::begin_launch(dim3 size, void (*body)(const void*), const void* parameters) {
  const unsigned count = size.x * size.y * size.z;
  stacks_.reserve(count);
  threads_.resize(count);
  copies_.resize(count);
  warps_.resize((count + 31) / 32);
  order_.resize(count);
  for (unsigned i = 0; i < count; i++) {
    order_[i] = options.order == Order::reverse ? count - 1 - i : i;
  }
  random_.seed(options.seed);
  launcher_ = Fiber();
  size_ = size;
  body_ = body;
  parameters_ = parameters;
}

void Block::prepare(unsigned i) {
  Thread& thread = threads_[i];
  thread.index = {i % size_.x, i / size_.x % size_.y, i / (size_.x * size_.y)};
  copies_[i].clear();
  // Stacks lie a power of two apart: without an offset, all would compete for one cache set.
  const std::size_t offset = i % 32 * 192;
  thread.fiber.prepare(stacks_.at(i), Stacks::bytes() - offset, &Block::thread_main);
  warps_[i / 32].live |= 1u << i % 32;
}

void Block::run() {
  live_ = size();
  arrived_ = 0;
  error_ = nullptr;
  for (Warp& warp : warps_) warp.live = warp.open = 0;
  for (unsigned i = 0; i < size(); i++) prepare(i);
  ready_.reset(size());
  shuffle(order_);
  for (unsigned i : order_) ready_.push(i);
  resume(ready_.pop(), launcher_, false);
  running_thread = -1;
  if (error_) std::rethrow_exception(error_);
}

void Block::thread_main() {
  Fiber::started(block.launcher_);
  Fiber& self = block.threads_[running_number()].fiber;
  bool done = false;
  try {
    block.body_(block.parameters_);
    block.leave();
    done = block.live_ == 0;
  } catch (...) {
    block.error_ = std::current_exception();
    done = true;
  }
  if (done) {
    self.switch_to(block.launcher_, true);
  } else {
    block.resume(block.ready_.pop(), self, true);
  }
  __builtin_trap();
}

// A thread's end is an error if others wait for it: a GPU would hang, or hide the mistake.
void Block::leave() {
  const unsigned thread = running_number(), lane = thread % 32;
  Warp& warp = warps_[thread / 32];
  if (!copies().empty()) {
    fail("a thread returned without copy_async_wait_all() after its copy_async at %s",
         place(copies()[0].site).c_str());
  }
  if (arrived_) {
    fail("a thread returned while others wait at __syncthreads %s", place(barrier_).c_str());
  }
  for (unsigned open = warp.open; open; open &= open - 1) {
    const Gathering& group = warp.gathering[__builtin_ctz(open)];
    if (group.mask >> lane & 1) {
      fail("a lane returned while others wait for it in %s %s, mask %08x", group.name,
           place(group.site).c_str(), group.mask);
    }
  }
  warp.live &= ~(1u << lane);
  live_--;
  if (live_ && ready_.empty()) fail("deadlock: %s", deadlock().c_str());
}

void Block::resume(unsigned i, Fiber& from, bool last) {
  running_thread = static_cast<int>(i);
  builtins.thread = threads_[i].index;
  from.switch_to(threads_[i].fiber, last);
}

void Block::wait() {
  if (ready_.empty()) fail("deadlock: %s", deadlock().c_str());
  Thread& self = threads_[running_number()];
  const unsigned next = ready_.pop();
  // The last thread at a barrier may be the first to go on.
  if (&threads_[next] != &self) resume(next, self.fiber, false);
}

void Block::shuffle(std::vector<unsigned>& order) {
  if (options.order == Order::random) std::shuffle(order.begin(), order.end(), random_);
}

void Block::barrier(Site site) {
  if (arrived_ == 0) {
    barrier_ = site;
  } else if (!same(barrier_, site)) {
    fail("divergent __syncthreads: this thread is at %s, others wait at %s", place(site).c_str(),
         place(barrier_).c_str());
  }
  if (live_ < size()) {
    fail("a thread waits at __syncthreads %s, %u of the block's have returned",
         place(site).c_str(), size() - live_);
  }
  if (++arrived_ == live_) {
    count_barrier(Barrier::block, site);
    release_barrier();
  }
  wait();
}

void Block::release_barrier() {
  arrived_ = 0;
  if (observer) observer->on_block_barrier();
  shuffle(order_);
  for (unsigned i : order_) ready_.push(i);
}

// The gathering that the running lane joins; a new one if it is the first.
Gathering& Block::find(Warp& warp, const char* name, unsigned mask, Action action, Site site) {
  const unsigned lane = running_number() % 32;
  for (unsigned open = warp.open; open; open &= open - 1) {
    Gathering& group = warp.gathering[__builtin_ctz(open)];
    if (group.mask == mask && group.action == action && same(group.site, site)) return group;
    // Each waits for the other: neither can go on.
    if ((group.arrived & mask) && (group.mask >> lane & 1)) {
      fail("divergent warp: this lane is in %s %s, mask %08x; others are in %s %s, mask %08x", name,
           place(site).c_str(), mask, group.name, place(group.site).c_str(), group.mask);
    }
  }
  warp.open |= 1u << lane;
  Gathering& group = warp.gathering[lane];
  group.name = name;
  group.site = site;
  group.mask = mask;
  group.arrived = 0;
  group.action = action;
  return group;
}

void Block::gather(const char* name, unsigned mask, void* argument, Action action, bool is_barrier,
                   Site site) {
  const unsigned thread = running_number(), lane = thread % 32;
  Warp& warp = warps_[thread / 32];
  if (!(mask >> lane & 1)) {
    fail("%s %s: lane %u is not in its own mask %08x", name, place(site).c_str(), lane, mask);
  }
  if (mask & ~warp.live) {
    fail("%s %s: mask %08x names lanes that have returned or do not exist, alive are %08x", name,
         place(site).c_str(), mask, warp.live);
  }
  Gathering& group = find(warp, name, mask, action, site);
  group.arguments[lane] = argument;
  group.arrived |= 1u << lane;
  if (group.arrived != mask) return wait();
  warp.open &= ~(1u << (&group - warp.gathering));
  if (is_barrier) {
    count_barrier(Barrier::warp, site);
    if (observer) observer->on_warp_barrier(thread / 32, mask);
  }
  if (action) action(group.arguments, mask);
  // The last to arrive goes straight on.
  release_lanes(mask & ~(1u << lane), thread - lane);
}

// A warp goes on before others do, which is twice as fast, as its stacks stay in the cache. In
// random order warps take turns, and lanes go in any order.
void Block::release_lanes(unsigned lanes, unsigned first_thread) {
  const bool random = options.order == Order::random;
  const unsigned rotation = random ? random_() % 32 : 0;
  for (unsigned i = 0; i < 32; i++) {
    const unsigned lane = options.order == Order::reverse ? i : (31 - i + rotation) % 32;
    if (!(lanes >> lane & 1)) continue;
    random ? ready_.push(first_thread + lane) : ready_.push_front(first_thread + lane);
  }
}

std::string Block::deadlock() const {
  std::string text = "no thread can go on";
  if (arrived_) {
    text += "; " + std::to_string(arrived_) + " threads wait at __syncthreads " + place(barrier_);
  }
  for (std::size_t i = 0; i < warps_.size(); i++) {
    for (unsigned open = warps_[i].open; open; open &= open - 1) {
      const Gathering& group = warps_[i].gathering[__builtin_ctz(open)];
      char masks[80];
      std::snprintf(masks, sizeof masks, " with mask %08x, lanes %08x have come", group.mask,
                    group.arrived);
      text += "; warp " + std::to_string(i) + " waits in " + group.name + " " +
              place(group.site) + masks;
    }
  }
  return text;
}

}  // namespace emulator
}  // namespace fwm
