// The table of the instruction set that is being compiled. Not a header of its own: isa_*.cpp set the
// compiler's target, define FWM_ISA, FWM_VECTOR_BYTES and FWM_REGISTERS, and include it last.
#include "causal.h"
#include "maps.h"
#include "rescaled.h"
#include "self_referential.h"
#include "step.h"
#include "table.h"

#define FWM_NAME_(isa) #isa
#define FWM_NAME(isa) FWM_NAME_(isa)
#define FWM_TABLE_(isa) kernels_##isa
#define FWM_TABLE(isa) FWM_TABLE_(isa)

namespace fwm {
extern const Kernels FWM_TABLE(FWM_ISA);
const Kernels FWM_TABLE(FWM_ISA) = {
    FWM_NAME(FWM_ISA),
    FWM_VECTOR_BYTES,
    {{FWM_ISA::causal_forward<float, false>, FWM_ISA::causal_forward<float, true>},
     {FWM_ISA::causal_forward<double, false>, FWM_ISA::causal_forward<double, true>}},
    {{FWM_ISA::causal_backward<float, false>, FWM_ISA::causal_backward<float, true>},
     {FWM_ISA::causal_backward<double, false>, FWM_ISA::causal_backward<double, true>}},
    {FWM_ISA::step<float>, FWM_ISA::step<double>},
    {FWM_ISA::map_rows<float>, FWM_ISA::map_rows<double>},
    {FWM_ISA::favor_rows<float>, FWM_ISA::favor_rows<double>},
    {FWM_ISA::rescaled_forward<float>, FWM_ISA::rescaled_forward<double>},
    {FWM_ISA::rescaled_backward<float>, FWM_ISA::rescaled_backward<double>},
    {FWM_ISA::recurrent_forward<float>, FWM_ISA::recurrent_forward<double>},
    {FWM_ISA::recurrent_backward<float>, FWM_ISA::recurrent_backward<double>},
    {FWM_ISA::self_referential_forward<float>, FWM_ISA::self_referential_forward<double>},
    {FWM_ISA::self_referential_backward<float>, FWM_ISA::self_referential_backward<double>},
};
}  // namespace fwm
