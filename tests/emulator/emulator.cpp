// Launches, shared memory, and what a kernel asks of its warp.
#include "emulator.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <numeric>
#include <vector>

#include "barriers.h"
#include "block.h"
#include "launches.h"
#include "observer.h"
#include "shared_space.h"

namespace fwm {
namespace emulator {

Builtins builtins;
Options options;
Observer* observer = nullptr;

namespace {

std::mutex one_launch;
thread_local bool inside_launch = false;
const Launch* current = nullptr;
Range parameters;
SharedSpace shared_space;

std::string text(dim3 size) {
  return std::to_string(size.x) + " x " + std::to_string(size.y) + " x " + std::to_string(size.z);
}

void check_launch(dim3 grid, dim3 size, std::size_t shared) {
  const std::uint64_t threads = std::uint64_t(size.x) * size.y * size.z;
  const bool fits = size.x <= 1024 && size.y <= 1024 && size.z <= 64 && threads <= 1024;
  if (!threads || !fits) fail("a block of %s threads", text(size).c_str());
  const bool possible = grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  if (!grid.x || !grid.y || !grid.z || !possible) fail("a grid of %s blocks", text(grid).c_str());
  if (shared > options.shared_limit) {
    fail("%zu bytes of shared memory asked for, a block may have %zu", shared,
         options.shared_limit);
  }
}

std::vector<unsigned> block_order(unsigned blocks) {
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (options.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (options.order == Order::random) {
    std::shuffle(order.begin(), order.end(), std::mt19937_64(options.seed));
  }
  return order;
}

void run_blocks(dim3 grid) {
  for (unsigned i : block_order(grid.x * grid.y * grid.z)) {
    builtins.block = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
    shared_space.begin_block(options.fill_shared);
    if (observer) observer->begin_block(i);
    block.run();
  }
}

// Marks the launch as running, and as over however it ends.
class Running {
 public:
  explicit Running(const Launch& launch) {
    inside_launch = true;
    current = &launch;
  }
  ~Running() {
    inside_launch = false;
    current = nullptr;
    running_thread = -1;
  }
};

}  // namespace

void fail(const char* format, ...) {
  char what[600];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  std::string message = what;
  if (current) message += std::string(" [") + current->kernel;
  if (running_thread >= 0) {
    char where[120];
    const uint3 &b = builtins.block, &t = builtins.thread;
    std::snprintf(where, sizeof where, ", block (%u,%u,%u), thread (%u,%u,%u)", b.x, b.y, b.z, t.x,
                  t.y, t.z);
    message += where;
  }
  if (current) message += ", launched at " + place({current->file, current->line}) + "]";
  throw Error(message);
}

void run(const Launch& launch, dim3 grid, dim3 size, std::size_t shared,
         void (*body)(const void*), const void* call, std::size_t call_bytes) {
  if (inside_launch) fail("a kernel cannot launch another");
  std::lock_guard<std::mutex> lock(one_launch);
  const Running running(launch);
  check_launch(grid, size, shared);
  note_launch(launch, grid, size, shared);
  if (!options.execute) return;
  builtins.block_size = size;
  builtins.grid_size = grid;
  parameters = Range(call, call_bytes);
  shared_space.begin_launch(shared);
  block.begin_launch(size, body, call);
  if (observer) observer->begin_launch(shared_space.range());
  run_blocks(grid);
}

bool is_private(std::uintptr_t address) {
  const Stacks& stacks = block.stacks();
  return Range(stacks.begin(), stacks.total_bytes()).contains(address) ||
         parameters.contains(address) || Range(&builtins, sizeof builtins).contains(address);
}

void note_access(const void* address, std::size_t bytes, bool write, const void* pc) {
  if (!observer) return;
  observer->on_access({reinterpret_cast<std::uintptr_t>(address), bytes, write,
                       reinterpret_cast<std::uintptr_t>(pc)});
}

void sync_block(Site site) {
  if (!is_skipped(Barrier::block, site)) block.barrier(site);
}

void sync_warp(unsigned mask, Site site) {
  if (is_skipped(Barrier::warp, site)) return;
  block.gather("__syncwarp", mask, nullptr, nullptr, true, site);
}

void warp_collective(const char* name, unsigned mask, void* argument, Action action, Site site) {
  block.gather(name, mask, argument, action, false, site);
}

namespace {

struct Exchange {
  std::uint64_t value, result;
  int source;
};

void exchange(void* const* arguments, unsigned mask) {
  for (unsigned lanes = mask; lanes; lanes &= lanes - 1) {
    Exchange& mine = *static_cast<Exchange*>(arguments[__builtin_ctz(lanes)]);
    mine.result = static_cast<const Exchange*>(arguments[mine.source])->value;
  }
}

}  // namespace

std::uint64_t shuffle_bits(const char* name, unsigned mask, std::uint64_t bits, int source,
                           Site site) {
  if (!(mask >> source & 1)) {
    fail("%s %s: lane %d reads lane %d, which is not in the mask %08x", name, place(site).c_str(),
         running_thread % 32, source, mask);
  }
  Exchange mine{bits, 0, source};
  warp_collective(name, mask, &mine, &exchange, site);
  return mine.result;
}

int shuffle_source(Shuffle kind, int operand, int width, Site site) {
  if (width < 1 || width > 32 || (width & (width - 1))) {
    fail("shuffle at %s: width %d is not 1, 2, 4, 8, 16 or 32", place(site).c_str(), width);
  }
  const int lane = running_thread % 32, first = lane & ~(width - 1), end = first + width;
  switch (kind) {
    case Shuffle::index:
      return first + (operand & (width - 1));
    case Shuffle::exclusive_or:
      return (lane ^ operand) < end ? lane ^ operand : lane;
    case Shuffle::down:
      return lane + operand < end ? lane + operand : lane;
    default:
      return lane - operand >= first ? lane - operand : lane;
  }
}

void* shared_array(std::size_t offset, std::size_t bytes, int index) {
  if (offset + bytes > shared_space.asked()) {
    fail("an array of %zu bytes after %zu bytes of others is more than the %zu bytes of shared "
         "memory of this launch",
         bytes, offset, shared_space.asked());
  }
  return shared_space.array(offset, bytes, index);
}

void copy_async(void* shared, const void* source, int bytes, Site site) {
  const auto to = reinterpret_cast<std::uintptr_t>(shared);
  const auto from = reinterpret_cast<std::uintptr_t>(source);
  const std::string where = "copy_async " + place(site);
  if (bytes != 4 && bytes != 8 && bytes != 16) {
    fail("%s: %d bytes, not 4, 8 or 16", where.c_str(), bytes);
  }
  if (to % bytes || from % bytes) {
    fail("%s: an address is not a multiple of the %d bytes", where.c_str(), bytes);
  }
  if (!shared_space.range().contains(to)) fail("%s: not into shared memory", where.c_str());
  const void* pc = __builtin_return_address(0);
  note_access(shared, bytes, true, pc);
  note_access(source, bytes, false, pc);
  // What the copy will bring is not there yet; an address that is wrong shall be found here.
  std::memset(shared, 0xff, bytes);
  for (int i = 0; i < bytes; i++) (void)static_cast<const volatile char*>(source)[i];
  block.copies().push_back({shared, source, bytes, pc, site});
}

void copy_async_wait_all() {
  std::vector<AsyncCopy>& copies = block.copies();
  for (const AsyncCopy& copy : copies) {
    note_access(copy.shared, copy.bytes, true, copy.pc);
    std::memcpy(copy.shared, copy.source, copy.bytes);
  }
  copies.clear();
}

}  // namespace emulator
}  // namespace fwm
