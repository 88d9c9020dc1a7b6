// The kernels for AVX2 with FMA.
#if defined(__x86_64__)
#include "src/ops/cpu/simd/fill_table.h"
#include "src/ops/cpu/simd/vec_avx2.h"

namespace dmamba::ops::cpu {

constinit const KernelTable kAvx2Kernels = make_table<Vec256>("avx2");

}  // namespace dmamba::ops::cpu
#endif
