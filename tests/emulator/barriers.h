// Which barriers ran, and which one a mutation test skips.
#pragma once

#include <string>

#include "emulator.h"

namespace fwm {
namespace emulator {

enum class Barrier { block, warp };

// Whether Options::skip names it.
bool is_skipped(Barrier kind, Site site);
void count_barrier(Barrier kind, Site site);
void forget_barriers();
std::string list_barriers();

const char* file_name(const char* path);

}  // namespace emulator
}  // namespace fwm
