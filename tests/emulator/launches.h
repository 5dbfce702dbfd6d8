// The launches since the last reset, for what is computed from their shapes.
#pragma once

#include <cstddef>
#include <string>

#include "emulator.h"

namespace fwm {
namespace emulator {

void note_launch(const Launch& launch, dim3 grid, dim3 block, std::size_t shared);
void forget_launches();

// One a line, in order: "GRID_X GRID_Y GRID_Z THREADS SHARED_BYTES KERNEL".
std::string list_launches();

}  // namespace emulator
}  // namespace fwm
