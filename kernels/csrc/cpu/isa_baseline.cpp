// The instruction set that every machine of the architecture has: SSE2, NEON.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "../problem.h"

#define FWM_ISA baseline
#define FWM_VECTOR_BYTES 16
#define FWM_REGISTERS 16
#include "instantiate.h"
