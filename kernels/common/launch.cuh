// Launches: as usual, and early, whose blocks take their places while the kernel before them in the
// stream still ends (programmatic dependent launch, from sm_90 on; elsewhere launches as usual).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/common/instructions.cuh"

namespace dmamba::kernels {

/// Asks L2 for an array, each thread of the grid for its share, by lines of 128 bytes. Whatever it
/// holds by then, so that it may come before wait_for_stream(): the weights of a step have left L2
/// since they were used last.
__device__ __forceinline__ void fetch_early(const void* array, int64_t bytes) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * 128;
  for (int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 128; at < bytes;
       at += stride) {
    fetch_line(static_cast<const char*>(array) + at);
  }
}

/// What a launch is told of its size, without attributes.
inline cudaLaunchConfig_t launch_config(dim3 grid, dim3 block, size_t bytes, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  return config;
}

/// A kernel onto a stream, `bytes` of shared memory for each block.
template <class... Args>
cudaError_t launch_kernel(void (*kernel)(Args...), dim3 grid, dim3 block, size_t bytes,
                          cudaStream_t stream, const std::type_identity_t<Args>&... args) {
  const cudaLaunchConfig_t config = launch_config(grid, block, bytes, stream);
  return cudaLaunchKernelEx(&config, kernel, args...);
}

/// The same, early. For kernels that begin with wait_for_stream() and wait for nothing but their
/// own stream.
template <class... Args>
cudaError_t launch_early(void (*kernel)(Args...), dim3 grid, dim3 block, size_t bytes,
                         cudaStream_t stream, const std::type_identity_t<Args>&... args) {
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = launch_config(grid, block, bytes, stream);
  config.attrs = &early;
  config.numAttrs = major >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace dmamba::kernels
