// The vector kernels of one instruction set, as plain functions: what dispatch.h chooses from.
//
// Each works on units [begin, end) of a problem, so that any number of threads shares the units and
// leaves the same bits. `scratch` is 64-byte aligned memory of the size that the _scratch twin
// states. The files that fill a table are compiled for one instruction set: they include no header
// with functions that the linker could merge with another file's (no torch, no standard
// containers).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/causal_conv1d/params.h"
#include "kernels/elementwise/params.h"
#include "kernels/selective_scan/params.h"
#include "src/ops/cpu/simd/params.h"

namespace dmamba::ops::cpu {

struct KernelTable {
  const char* name;
  int lanes;  // channels that a unit of the forward kernels covers, fp32 and bf16

  void (*scan_forward)(const kernels::SelectiveScanForwardParams&, int64_t begin, int64_t end,
                       void* scratch);
  void (*scan_backward)(const kernels::SelectiveScanBackwardParams&, int64_t begin, int64_t end,
                        void* scratch);
  size_t (*scan_forward_scratch)(const kernels::SelectiveScanForwardParams&);
  size_t (*scan_backward_scratch)(const kernels::SelectiveScanBackwardParams&);
  void (*conv_forward)(const kernels::CausalConv1dForwardParams&, int64_t begin, int64_t end,
                       void* scratch);
  void (*conv_backward)(const kernels::CausalConv1dBackwardParams&, int64_t begin, int64_t end,
                        void* scratch);
  size_t (*conv_scratch)(const kernels::CausalConv1dParams&);

  // Elements [begin, end); begin is a multiple of kElementwiseUnit.
  void (*gelu_forward)(const kernels::GeluParams&, int64_t begin, int64_t end);
  void (*gelu_backward)(const kernels::GeluParams&, int64_t begin, int64_t end);
  void (*dropout)(const kernels::DropoutParams&, int64_t begin, int64_t end);

  // Units of kRowsPerUnit rows.
  void (*bias_gelu)(const kernels::BiasGeluParams&, int64_t begin, int64_t end);
  void (*multiply_sum)(const kernels::MultiplySumParams&, int64_t begin, int64_t end);

  // Units of tokens.
  void (*product)(const ProductParams&, int64_t begin, int64_t end);
  void (*layer_norm)(const LayerNormParams&, int64_t begin, int64_t end);
};

/// Units of the scan's forward and of both directions of the convolution: (sequence, `lanes`
/// channels).
inline int64_t block_units(int64_t batch, int64_t d_inner, int lanes) {
  return batch * ((d_inner + lanes - 1) / lanes);
}

extern const KernelTable kPortableKernels;        // fp32 and bf16, any processor
extern const KernelTable kPortableDoubleKernels;  // fp64, any processor
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
#endif

}  // namespace dmamba::ops::cpu
