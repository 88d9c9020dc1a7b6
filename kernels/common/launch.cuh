// Launches whose blocks take their places while the kernel before them in the stream still ends
// (programmatic dependent launch, from sm_90 on; elsewhere launches as usual).
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

namespace dmamba::kernels {

/// First in every kernel that is launched early: returns when the kernels before it in the stream
/// have ended and what they wrote is to be seen. Nothing is read or written before it. Then the
/// next kernel's blocks may come.
__device__ __forceinline__ void wait_for_stream() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// `kernel<<<grid, block, bytes, stream>>>(args...)`, early. For kernels that begin with
/// wait_for_stream() and wait for nothing but their own stream.
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
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = major >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace dmamba::kernels
