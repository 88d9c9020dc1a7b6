// The kernels for AVX-512 (F, DQ, BW, VL).
#if defined(__x86_64__)
#include "src/ops/cpu/simd/fill_table.h"
#include "src/ops/cpu/simd/vec_avx512.h"

namespace dmamba::ops::cpu {

constinit const KernelTable kAvx512Kernels = make_table<Vec512>("avx512");

}  // namespace dmamba::ops::cpu
#endif
