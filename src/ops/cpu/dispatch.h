// Chooses the vector kernels for this processor, once, at the first use.
#pragma once

#include "src/ops/cpu/simd/table.h"

namespace dmamba::ops::cpu {

/// The kernels for a storage type.
const KernelTable& kernels_for(kernels::Storage storage);

}  // namespace dmamba::ops::cpu
