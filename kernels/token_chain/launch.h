// What src/ops/cuda calls for the token chain. The rules of kernels/selective_scan/launch.h hold
// here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/token_chain/params.h"

namespace dmamba::kernels {

/// Whether the kernels, which are of kHopperArchitecture alone, take so many rows of a layer of
/// these widths.
constexpr bool token_chain_fits(int64_t rows, int64_t width, int64_t inner, int64_t hidden,
                                int64_t next) {
  return rows > 0 && rows <= kChainMostRows && width == kChainWidth && inner > 0 &&
         inner % kChainChunk == 0 && hidden > 0 && hidden % kChainChunk == 0 &&
         next % kChainChunk == 0;
}

cudaError_t launch_token_chain(const TokenChainParams& p, cudaStream_t stream);
cudaError_t launch_token_chain_backward(const TokenChainBackwardParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
