// The emulator as one translation unit, which compiles in half the time of its parts. The kernels,
// and race.cpp or memory.cpp, are linked to it.
#include "barriers.cpp"
#include "block.cpp"
#include "control.cpp"
#include "emulator.cpp"
#include "fiber.cpp"
#include "launches.cpp"
#include "matrix.cpp"
#include "shared_space.cpp"
