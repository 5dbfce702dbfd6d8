#include "barriers.h"

#include <cstring>
#include <map>
#include <string_view>
#include <tuple>

namespace fwm {
namespace emulator {

namespace {

struct Key {
  bool skipped;
  Barrier kind;
  Site site;
  // By address, which is fast; equal names from several places are added up in the list.
  bool operator<(const Key& other) const {
    return std::tie(site.line, site.file, kind, skipped) <
           std::tie(other.site.line, other.site.file, other.kind, other.skipped);
  }
};
std::map<Key, std::size_t> counts;

bool ends_with(std::string_view path, std::string_view end) {
  if (path.size() < end.size() || path.substr(path.size() - end.size()) != end) return false;
  return path.size() == end.size() || path[path.size() - end.size() - 1] == '/';
}

bool names(std::string_view skip, Site site) {
  const std::size_t colon = skip.rfind(':');
  return skip.substr(colon + 1) == std::to_string(site.line) &&
         ends_with(site.file, skip.substr(0, colon));
}

}  // namespace

const char* file_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

bool is_skipped(Barrier kind, Site site) {
  if (options.skip.empty() || !names(options.skip, site)) return false;
  counts[{true, kind, site}]++;
  return true;
}

void count_barrier(Barrier kind, Site site) { counts[{false, kind, site}]++; }

void forget_barriers() { counts.clear(); }

std::string list_barriers() {
  std::map<std::string, std::size_t> named;
  for (const auto& [key, count] : counts) {
    const char* kind = key.kind == Barrier::block ? "__syncthreads " : "__syncwarp ";
    named[(key.skipped ? "skipped " : "") + std::string(kind) + file_name(key.site.file) + ":" +
          std::to_string(key.site.line)] += count;
  }
  std::string list;
  for (const auto& [name, count] : named) list += name + " " + std::to_string(count) + "\n";
  return list;
}

}  // namespace emulator
}  // namespace fwm
