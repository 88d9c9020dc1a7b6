// Launches: as usual; early, whose blocks take their places while the kernel before them in the
// stream still ends (programmatic dependent launch, from sm_90 on; elsewhere launches as usual); in
// clusters of blocks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

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

/// What was asked and said of a kernel on a device, until the process ends.
struct KnownKernel {
  int architecture = 0;      // 0: not asked yet
  size_t shared = 40 << 10;  // dynamic bytes that a block may have; so many beside static ones
};
struct KnownKernels {
  std::mutex mutex;
  std::map<std::pair<int, const void*>, KnownKernel> by_device;
};
inline KnownKernels& known_kernels() {
  static KnownKernels& all = *new KnownKernels;  // threads may launch while the process ends
  return all;
}

/// Before a launch on the current device: lets the kernel's blocks have so much dynamic shared
/// memory, or more (never less than before, for another thread may be about to launch it), and says
/// for what it was compiled, where `architecture` is not null: 10 times major + minor of the
/// architecture whose code the device runs, its own, or an older one's, of which the driver has
/// made code for it. What `#if __CUDA_ARCH__` left out there is not in it, whatever the device
/// could do.
inline cudaError_t ready_kernel(const void* kernel, size_t bytes, int* architecture) {
  if (bytes <= KnownKernel{}.shared && architecture == nullptr) return cudaSuccess;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  KnownKernels& all = known_kernels();
  const std::lock_guard lock(all.mutex);
  KnownKernel& known = all.by_device[{device, kernel}];
  if (architecture != nullptr && known.architecture == 0) {
    cudaFuncAttributes attributes{};
    error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    known.architecture = attributes.ptxVersion;
  }
  if (architecture != nullptr) *architecture = known.architecture;
  if (bytes <= known.shared) return cudaSuccess;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes));
  if (error == cudaSuccess) known.shared = bytes;
  return error;
}

/// Whether the current device runs code of a kernel that was compiled for clusters of blocks and
/// early launches.
template <class... Args>
bool compiled_for_clusters(void (*kernel)(Args...)) {
  int architecture = 0;
  const cudaError_t error = ready_kernel(reinterpret_cast<const void*>(kernel), 0, &architecture);
  if (error != cudaSuccess) cudaGetLastError();  // there is no code for it at all, which is a no
  return error == cudaSuccess && architecture >= 90;
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
  const cudaError_t error = ready_kernel(reinterpret_cast<const void*>(kernel), bytes, nullptr);
  if (error != cudaSuccess) return error;
  const cudaLaunchConfig_t config = launch_config(grid, block, bytes, stream);
  return cudaLaunchKernelEx(&config, kernel, args...);
}

/// The same, early. For kernels that begin with wait_for_stream() and wait for nothing but their
/// own stream.
template <class... Args>
cudaError_t launch_early(void (*kernel)(Args...), dim3 grid, dim3 block, size_t bytes,
                         cudaStream_t stream, const std::type_identity_t<Args>&... args) {
  int architecture = 0;
  const cudaError_t error =
      ready_kernel(reinterpret_cast<const void*>(kernel), bytes, &architecture);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = launch_config(grid, block, bytes, stream);
  config.attrs = &early;
  config.numAttrs = architecture >= 90 ? 1 : 0;  // else nothing waits in it
  return cudaLaunchKernelEx(&config, kernel, args...);
}

/// Calls f(config) for a launch in clusters of `blocks` blocks.
template <class F, class... Args>
cudaError_t with_clusters(void (*kernel)(Args...), int blocks, dim3 grid, dim3 block, size_t bytes,
                          cudaStream_t stream, F&& f) {
  int architecture = 0;
  const cudaError_t error =
      ready_kernel(reinterpret_cast<const void*>(kernel), bytes, &architecture);
  if (error != cudaSuccess) return error;
  if (architecture < 90) return cudaErrorInvalidDeviceFunction;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config = launch_config(grid, block, bytes, stream);
  config.attrs = &cluster;
  config.numAttrs = 1;
  return f(config);
}

/// A kernel whose blocks come in clusters.
template <class... Args>
cudaError_t launch_clusters(void (*kernel)(Args...), int blocks, dim3 grid, dim3 block,
                            size_t bytes, cudaStream_t stream,
                            const std::type_identity_t<Args>&... args) {
  return with_clusters(kernel, blocks, grid, block, bytes, stream,
                       [&](const cudaLaunchConfig_t& config) {
                         return cudaLaunchKernelEx(&config, kernel, args...);
                       });
}

}  // namespace dmamba::kernels
