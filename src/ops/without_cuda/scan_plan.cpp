// What dmamba/ops/ops.h says of CUDA, in a library that was built without it.
#include "dmamba/common/error.h"
#include "dmamba/ops/ops.h"

namespace dmamba::ops {

bool built_with_cuda() { return false; }

void set_cuda_scan_plan(int64_t chunk_length) {
  throw Error(
      "set_cuda_scan_plan: this dmamba was built without CUDA kernels; dmamba info says why");
}

void set_token_chain(bool) {
  throw Error("set_token_chain: this dmamba was built without CUDA kernels; dmamba info says why");
}

bool token_chain_enabled() { return false; }

}  // namespace dmamba::ops
