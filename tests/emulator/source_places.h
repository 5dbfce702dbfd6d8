// Where in the source an instruction comes from, by addr2line.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fwm {
namespace emulator {

struct Place {
  std::string line;    // FILE:LINE of the kernels' source
  std::string caller;  // that of the outermost function it was inlined into; empty if the same
};

// By the return addresses of calls. The emulator's own headers are skipped for what includes them.
std::map<std::uintptr_t, Place> source_places(const std::vector<std::uintptr_t>& pcs);

}  // namespace emulator
}  // namespace fwm
