// A report of how kernels use memory: for every line that loads or stores, the requests of warps,
// and what they cost.
//
//     FILE:LINE shared|global load|store REQUESTS LANES BYTES COST WORST
//
// LANES is how many lanes take part and BYTES how much each asks for, on average. COST, on average,
// and WORST, at most, count for shared memory how many times as long as without bank conflicts a
// request takes (1: none), for global memory the sectors of 32 bytes that it touches.
//
// The k-th access of a line by each lane of a warp is taken for one request. Accesses are the C++
// compiler's: nvcc may join some, and keep others in registers.
#include <algorithm>
#include <deque>
#include <set>
#include <unordered_map>

#include "hooks.cpp"
#include "source_places.cpp"

namespace fwm {
namespace emulator {

namespace {

struct Request {
  unsigned lanes = 0;
  std::size_t bytes = 0;
  std::uintptr_t address[32];
};

struct Totals {
  std::size_t requests = 0, lanes = 0, bytes = 0, cost = 0, worst = 0;

  void add(const Totals& other) {
    requests += other.requests;
    lanes += other.lanes;
    bytes += other.bytes;
    cost += other.cost;
    worst = std::max(worst, other.worst);
  }
};

// 32 banks of 4 bytes. Requests of 8 or 16 bytes a lane are served for 16 or 8 lanes at a time;
// each such turn takes as many cycles as its busiest bank has different words.
std::size_t worst_bank(const Request& request) {
  const unsigned turns = request.bytes <= 4 ? 1 : request.bytes <= 8 ? 2 : 4, lanes = 32 / turns;
  std::size_t worst = 1;
  for (unsigned first = 0; first < 32; first += lanes) {
    std::set<std::uintptr_t> words[32];
    for (unsigned l = first; l < first + lanes; l++) {
      if (!(request.lanes >> l & 1)) continue;
      for (std::uintptr_t byte = 0; byte < request.bytes; byte += 4) {
        const std::uintptr_t word = (request.address[l] + byte) / 4;
        words[word % 32].insert(word);
      }
    }
    for (const auto& bank : words) worst = std::max(worst, bank.size());
  }
  return worst;
}

std::size_t sectors(const Request& request) {
  std::set<std::uintptr_t> touched;
  for (unsigned l = 0; l < 32; l++) {
    if (!(request.lanes >> l & 1)) continue;
    const std::uintptr_t first = request.address[l] / 32;
    const std::uintptr_t last = (request.address[l] + request.bytes - 1) / 32;
    for (std::uintptr_t sector = first; sector <= last; sector++) touched.insert(sector);
  }
  return touched.size();
}

// The accesses of one instruction by one warp of the running block.
class WarpAccesses {
 public:
  Request& next(unsigned lane) {
    const std::size_t position = done_[lane]++ - finished_;
    if (position >= open_.size()) open_.resize(position + 1);
    return open_[position];
  }
  // Hands over what all lanes have done, or everything.
  template <class Take>
  void finish(bool everything, const Take& take) {
    while (!open_.empty() && (everything || open_.front().lanes == 0xffffffffu)) {
      take(open_.front());
      open_.pop_front();
      finished_++;
    }
  }

 private:
  std::deque<Request> open_;
  std::size_t finished_ = 0;
  std::size_t done_[32] = {};
};

struct Instruction {
  bool shared, write;
  std::uintptr_t pc;
  Totals totals;
  std::unordered_map<unsigned, WarpAccesses> warps;

  void count(const Request& request) {
    const std::size_t cost = shared ? worst_bank(request) : sectors(request);
    totals.add({1, static_cast<std::size_t>(__builtin_popcount(request.lanes)), request.bytes,
                cost, cost});
  }
  void finish_block() {
    for (auto& [warp, accesses] : warps) {
      accesses.finish(true, [&](const Request& request) { count(request); });
    }
    warps.clear();
  }
};

class MemoryReport final : public Observer {
 public:
  MemoryReport() { observer = this; }

  void begin_launch(Range shared) override {
    finish_block();
    shared_ = shared;
  }
  void begin_block(unsigned) override { finish_block(); }

  void on_access(const Access& access) override {
    const bool shared = shared_.contains(access.address);
    const auto key = access.pc * 4 + shared * 2 + access.write;
    const auto found = instructions_.try_emplace(key).first;
    Instruction& instruction = found->second;
    instruction.shared = shared;
    instruction.write = access.write;
    instruction.pc = access.pc;
    WarpAccesses& warp = instruction.warps[static_cast<unsigned>(running_thread) / 32];
    const unsigned lane = static_cast<unsigned>(running_thread) % 32;
    Request& request = warp.next(lane);
    request.lanes |= 1u << lane;
    request.bytes = access.bytes;
    request.address[lane] = access.address;
    warp.finish(false, [&](const Request& complete) { instruction.count(complete); });
  }

  std::size_t finding_count() override { return by_line().size(); }
  std::string report() override {
    std::string report;
    for (const auto& [line, t] : by_line()) {
      char numbers[120];
      const double n = static_cast<double>(t.requests);
      std::snprintf(numbers, sizeof numbers, " %zu %.2f %.2f %.2f %zu\n", t.requests, t.lanes / n,
                    t.bytes / n, t.cost / n, t.worst);
      report += line + numbers;
    }
    return report;
  }
  void reset() override { instructions_.clear(); }

 private:
  void finish_block() {
    for (auto& entry : instructions_) entry.second.finish_block();
  }
  std::map<std::string, Totals> by_line();

  Range shared_;
  std::unordered_map<std::uintptr_t, Instruction> instructions_;
};

// A template's instances, and the places a function is inlined into, are one line.
std::map<std::string, Totals> MemoryReport::by_line() {
  finish_block();
  std::vector<std::uintptr_t> pcs;
  for (const auto& entry : instructions_) pcs.push_back(entry.second.pc);
  const std::map<std::uintptr_t, Place> places = source_places(pcs);
  std::map<std::string, Totals> lines;
  for (const auto& entry : instructions_) {
    const Instruction& instruction = entry.second;
    lines[places.at(instruction.pc).line + (instruction.shared ? " shared" : " global") +
          (instruction.write ? " store" : " load")]
        .add(instruction.totals);
  }
  return lines;
}

MemoryReport memory_report;

}  // namespace

}  // namespace emulator
}  // namespace fwm
