// The kernels for any processor: one lane, fp32 and fp64.
#include "src/ops/cpu/simd/fill_table.h"

namespace dmamba::ops::cpu {

constinit const KernelTable kPortableKernels = make_table<VecScalar<float>>("portable");
constinit const KernelTable kPortableDoubleKernels = make_table<VecScalar<double>>("portable");

}  // namespace dmamba::ops::cpu
