#include "source_places.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "barriers.h"

namespace fwm {
namespace emulator {

namespace {

using Pcs = std::vector<std::uintptr_t>;

std::string quoted(const std::string& text) {
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::vector<std::string> output_of(const std::string& command) {
  std::vector<std::string> lines;
  std::FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return lines;
  char line[1024];
  while (std::fgets(line, sizeof line, pipe)) {
    const std::string text = line;
    lines.push_back(text.substr(0, text.find_first_of("\n")));
  }
  pclose(pipe);
  return lines;
}

// "/path/file.cuh:12 (discriminator 3)" as "file.cuh:12"; empty for what is no line of a kernel.
std::string kernel_line(const std::string& text) {
  const std::string line = text.substr(0, text.find(' '));
  const std::string name = file_name(line.c_str());
  const std::string file = name.substr(0, name.find(':'));
  const bool own = file == "emulator.h" || file == "vector_types.h" || file == "wmma.h";
  return own || line.rfind("/usr/", 0) == 0 || file == "??" ? "" : name;
}

// addr2line's answer: an address, then the line and those it was inlined into, outwards.
void read_places(const std::vector<std::string>& lines, const Pcs& pcs,
                 std::map<std::uintptr_t, Place>& places) {
  std::size_t next = 0;
  Place* place = nullptr;
  for (const std::string& text : lines) {
    if (text.rfind("0x", 0) == 0) {
      if (next == pcs.size()) return;
      place = &places[pcs[next++]];
      continue;
    }
    const std::string line = kernel_line(text);
    if (!place || line.empty()) continue;
    (place->line.empty() ? place->line : place->caller) = line;
  }
}

void find_in_module(const std::string& module, std::uintptr_t base, const Pcs& pcs,
                    std::map<std::uintptr_t, Place>& places) {
  constexpr std::size_t at_once = 1000;  // a command line has a limit
  for (std::size_t first = 0; first < pcs.size(); first += at_once) {
    const Pcs some(pcs.begin() + first, pcs.begin() + std::min(first + at_once, pcs.size()));
    std::string command = "addr2line -a -i -e " + quoted(module);
    for (std::uintptr_t pc : some) {
      char address[24];
      // The call is before the address it returns to.
      std::snprintf(address, sizeof address, " 0x%lx", static_cast<unsigned long>(pc - 1 - base));
      command += address;
    }
    read_places(output_of(command + " 2>/dev/null"), some, places);
  }
}

}  // namespace

std::map<std::uintptr_t, Place> source_places(const Pcs& pcs) {
  std::map<std::uintptr_t, Place> places;
  std::map<std::pair<std::string, std::uintptr_t>, Pcs> by_module;
  for (std::uintptr_t pc : pcs) {
    Dl_info info;
    if (!places.insert({pc, {}}).second || !dladdr(reinterpret_cast<void*>(pc), &info)) continue;
    // A program is known by the name that it was called by, which need not be a path.
    const bool is_path = access(info.dli_fname, R_OK) == 0;
    by_module[{is_path ? info.dli_fname : "/proc/" + std::to_string(getpid()) + "/exe",
               reinterpret_cast<std::uintptr_t>(info.dli_fbase)}]
        .push_back(pc);
  }
  for (const auto& [module, inside] : by_module) {
    find_in_module(module.first, module.second, inside, places);
  }
  for (auto& [pc, place] : places) {
    if (place.line.empty()) place.line = "unknown:0";
    if (place.caller == place.line) place.caller.clear();
  }
  return places;
}

}  // namespace emulator
}  // namespace fwm
