// A race detector. Two accesses to the same bytes, one of them a write, by two threads, are a race
// unless a __syncthreads, or a __syncwarp of both, lies between them. Whether they happened to run
// in a good order does not matter: the same races are found in every schedule.
//
// Shuffles and matrix operations order no memory. Blocks are never ordered within a launch. Reading
// shared memory that the block has not written is reported too. The unit is two bytes: two threads
// that write two neighbouring bytes are reported, though they do not race.
#include <algorithm>
#include <memory>
#include <set>
#include <tuple>
#include <unordered_map>

#include "hooks.cpp"
#include "source_places.cpp"

namespace fwm {
namespace emulator {

namespace {

// Which accesses of other lanes of a warp a lane has seen, through __syncwarp: vector clocks.
class WarpClocks {
 public:
  std::uint32_t now(unsigned lane) const { return now_[lane]; }
  bool has_seen(unsigned lane, unsigned other, std::uint32_t clock) const {
    return seen_[lane][other] >= clock;
  }
  void synchronise(unsigned mask) {
    std::uint32_t all[32] = {};
    for (unsigned l = 0; l < 32; l++) {
      if (!(mask >> l & 1)) continue;
      seen_[l][l] = now_[l];
      for (unsigned m = 0; m < 32; m++) all[m] = std::max(all[m], seen_[l][m]);
    }
    // One clock for all of them, so that their accesses can be kept together.
    latest_++;
    for (unsigned l = 0; l < 32; l++) {
      if (!(mask >> l & 1)) continue;
      std::copy(all, all + 32, seen_[l]);
      now_[l] = latest_;
    }
  }

 private:
  std::uint32_t latest_ = 1;
  std::uint32_t now_[32] = {};
  std::uint32_t seen_[32][32] = {};

 public:
  WarpClocks() { std::fill(now_, now_ + 32, 1); }
};

// Accesses of some lanes of one warp at one time; of none where lanes is 0.
struct Trace {
  std::uint32_t block = 0;
  std::uint32_t epoch = 0;  // how many __syncthreads came before
  std::uint32_t clock = 0;  // of the lanes
  std::uint32_t lanes = 0;
  std::uint32_t warp = 0;
  std::uintptr_t pc = 0;
};

// The history of two bytes, as much of it as later accesses can race with.
struct Cell {
  Trace write;
  // The latest readers since that write: of two warps, so that a write by any thread finds one that
  // is not its own warp's; and of some earlier block.
  Trace readers[2];
  Trace foreign_reader;
};

// Cells by address, of one launch.
class Cells {
 public:
  Cell& at(std::uintptr_t address) {
    const std::uintptr_t key = address / kBytes;
    Recent& recent = recent_[key % kRecent];
    if (recent.key != key || !recent.page) {
      std::unique_ptr<Page>& page = pages_[key];
      if (!page) page = std::make_unique<Page>();
      recent = {key, page.get()};
    }
    return recent.page->cells[address % kBytes / 2];
  }
  void clear() {
    pages_.clear();
    std::fill(recent_, recent_ + kRecent, Recent());
  }

 private:
  static constexpr std::uintptr_t kBytes = 2048;
  static constexpr int kRecent = 256;
  struct Page {
    Cell cells[kBytes / 2];
  };
  struct Recent {
    std::uintptr_t key = 0;
    Page* page = nullptr;
  };
  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  Recent recent_[kRecent];
};

enum class Kind { write_write, read_write, write_read, unwritten };

struct Finding {
  Kind kind;
  bool shared;
  std::uintptr_t address;  // in shared memory from its start
  Trace before, now;
  std::size_t count = 0;
};

class RaceDetector final : public Observer {
 public:
  RaceDetector() { observer = this; }

  void begin_launch(Range shared) override {
    shared_ = shared;
    cells_.clear();
  }
  void begin_block(unsigned block) override {
    now_.block = block;
    now_.epoch = 0;
    clocks_.assign(32, WarpClocks());
  }
  void on_block_barrier() override { now_.epoch++; }
  void on_warp_barrier(unsigned warp, unsigned mask) override { clocks_[warp].synchronise(mask); }

  void on_access(const Access& access) override {
    const auto thread = static_cast<unsigned>(running_thread);
    lane_ = thread % 32;
    now_.warp = thread / 32;
    now_.lanes = 1u << lane_;
    now_.clock = clocks_[now_.warp].now(lane_);
    now_.pc = access.pc;
    is_shared_ = shared_.contains(access.address);
    bool found = false;
    const std::uintptr_t first = access.address & ~std::uintptr_t(1);
    for (std::uintptr_t at = first; at < access.address + access.bytes; at += 2) {
      Cell& cell = cells_.at(at);
      if (!found) found = access.write ? check_write(cell, at) : check_read(cell, at);
      access.write ? record_write(cell) : record_read(cell);
    }
  }

  std::size_t finding_count() override { return count_; }
  std::string report() override;
  void reset() override {
    findings_.clear();
    count_ = 0;
  }

 private:
  bool is_ordered(const Trace& before) const;
  bool check_write(const Cell& cell, std::uintptr_t address);
  bool check_read(const Cell& cell, std::uintptr_t address);
  void record_write(Cell& cell) const;
  void record_read(Cell& cell) const;
  bool found(Kind kind, std::uintptr_t address, const Trace& before);

  Range shared_;
  Cells cells_;
  std::vector<WarpClocks> clocks_;
  Trace now_;
  unsigned lane_ = 0;
  bool is_shared_ = false;
  std::map<std::tuple<Kind, std::uintptr_t, std::uintptr_t>, Finding> findings_;
  std::size_t count_ = 0;
};

// Whether a barrier lies between the trace and this access, or nothing was traced.
bool RaceDetector::is_ordered(const Trace& before) const {
  if (before.lanes == 0) return true;
  // Shared memory of another block is other memory.
  if (before.block != now_.block) return is_shared_;
  if (before.epoch != now_.epoch) return true;
  if (before.warp != now_.warp) return false;
  for (unsigned others = before.lanes & ~now_.lanes; others; others &= others - 1) {
    const unsigned other = __builtin_ctz(others);
    if (!clocks_[now_.warp].has_seen(lane_, other, before.clock)) return false;
  }
  return true;
}

bool RaceDetector::check_write(const Cell& cell, std::uintptr_t address) {
  if (!is_ordered(cell.write)) return found(Kind::write_write, address, cell.write);
  for (const Trace* reader : {&cell.readers[0], &cell.readers[1], &cell.foreign_reader}) {
    if (!is_ordered(*reader)) return found(Kind::read_write, address, *reader);
  }
  return false;
}

bool RaceDetector::check_read(const Cell& cell, std::uintptr_t address) {
  if (!is_ordered(cell.write)) return found(Kind::write_read, address, cell.write);
  const bool is_written = cell.write.lanes && cell.write.block == now_.block;
  return is_shared_ && !is_written && found(Kind::unwritten, address, now_);
}

// Whatever races with an earlier access that is ordered before this one also races with this one:
// only this one is kept.
void RaceDetector::record_write(Cell& cell) const {
  cell = Cell();
  cell.write = now_;
}

void RaceDetector::record_read(Cell& cell) const {
  for (Trace& reader : cell.readers) {
    const bool same_time = reader.lanes && reader.block == now_.block &&
                           reader.epoch == now_.epoch && reader.warp == now_.warp &&
                           reader.clock == now_.clock;
    if (!same_time) continue;
    reader.lanes |= now_.lanes;
    reader.pc = now_.pc;
    return;
  }
  // Over a reader that this one replaces, or else over one of another warp.
  Trace* slot = nullptr;
  for (Trace& reader : cell.readers) {
    if (reader.lanes && reader.block != now_.block) {
      cell.foreign_reader = reader;
      reader.lanes = 0;
    }
    if (!slot && is_ordered(reader)) slot = &reader;
  }
  if (!slot) slot = &cell.readers[cell.readers[1].warp == now_.warp ? 0 : 1];
  *slot = now_;
}

bool RaceDetector::found(Kind kind, std::uintptr_t address, const Trace& before) {
  Finding& finding = findings_[{kind, before.pc, now_.pc}];
  if (finding.count++ == 0) {
    const std::uintptr_t start = is_shared_ ? shared_.begin : 0;
    finding = {kind, is_shared_, address - start, before, now_, 1};
  }
  count_++;
  return true;
}

std::string text(const Trace& trace, const Trace& other, const Place& place) {
  unsigned lanes = trace.lanes;
  // Of several lanes, one that is not the other access's own.
  if (lanes != other.lanes) lanes &= ~other.lanes;
  std::string out = "thread " + std::to_string(trace.warp * 32 + __builtin_ctz(lanes)) +
                    " of block " + std::to_string(trace.block) + " at " + place.line;
  return place.caller.empty() ? out : out + " (in " + place.caller + ")";
}

std::string text(const Finding& f, const std::map<std::uintptr_t, Place>& places) {
  char address[40];
  std::snprintf(address, sizeof address, f.shared ? "shared memory +%lu" : "global memory 0x%lx",
                static_cast<unsigned long>(f.address));
  const std::string now = text(f.now, f.before, places.at(f.now.pc));
  const std::string times = "; " + std::to_string(f.count) + " times\n";
  if (f.kind == Kind::unwritten) {
    return std::string("unwritten ") + address + ": " + now + " reads it" + times;
  }
  const std::string before = text(f.before, f.now, places.at(f.before.pc));
  return std::string("race on ") + address + ": " + now +
         (f.kind == Kind::write_read ? " reads" : " writes") + ", and " + before +
         (f.kind == Kind::read_write ? " has read" : " has written") +
         ", no barrier between them" + times;
}

std::string RaceDetector::report() {
  std::vector<std::uintptr_t> pcs;
  for (const auto& entry : findings_) {
    pcs.push_back(entry.second.before.pc);
    pcs.push_back(entry.second.now.pc);
  }
  const std::map<std::uintptr_t, Place> places = source_places(pcs);
  std::string report;
  for (const auto& entry : findings_) report += text(entry.second, places);
  return report;
}

RaceDetector detector;

}  // namespace

}  // namespace emulator
}  // namespace fwm
