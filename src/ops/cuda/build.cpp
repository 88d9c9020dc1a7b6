// The answer of a library that has the ops' CUDA side.
#include "dmamba/ops/ops.h"

namespace dmamba::ops {

bool built_with_cuda() { return true; }

}  // namespace dmamba::ops
