// CUDA's runtime as far as the kernels and their benchmarks call it: a device whose memory is this
// process's, and whose streams have nothing to wait for. It cannot capture graphs or measure time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "tests/emulation/grid.h"

#define CUDART_VERSION 0

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorMemoryAllocation,
  cudaErrorInvalidDeviceFunction,
  cudaErrorNoKernelImageForDevice,
  cudaErrorNotSupported
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    default:
      return "not emulated";
  }
}

// Memory

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };

template <class T>
cudaError_t cudaMalloc(T** to, size_t bytes) {
  constexpr size_t kAlignment = 256;
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, bytes) != 0) return cudaErrorMemoryAllocation;
  *to = static_cast<T*>(memory);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  if (kind == cudaMemcpyDeviceToHost) dmamba::emulation::note_result(from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

// The device: of the generation before Hopper, so that no kernel of Hopper's own is chosen

struct cudaDeviceProp {
  char name[256];
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrClockRate
};
constexpr int kEmulatedSharedBytes = 227 * 1024;  // that a block may ask for

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::snprintf(properties->name, sizeof properties->name, "emulated lane by lane");
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  constexpr int kMultiprocessors = 132, kClock = 1'980'000;
  *value = attribute == cudaDevAttrMultiProcessorCount            ? kMultiprocessors
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? kEmulatedSharedBytes
                                                                  : kClock;
  return cudaSuccess;
}

// Launches

using cudaStream_t = struct Stream*;
enum cudaLaunchAttributeID {
  cudaLaunchAttributeProgrammaticStreamSerialization,
  cudaLaunchAttributeClusterDimension
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
  int ptxVersion;
};

inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
/// Bytes of shared memory that a kernel may be launched with.
inline std::unordered_map<const void*, size_t> dmamba_most_shared;

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || bytes > kEmulatedSharedBytes) return cudaErrorInvalidValue;
  dmamba_most_shared[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}
/// What is said of kernels, 0: that there is none; the code is always that of __CUDA_ARCH__.
inline int dmamba_said_architecture = 90;
inline cudaError_t dmamba_last_error = cudaSuccess;
inline cudaError_t cudaGetLastError() { return std::exchange(dmamba_last_error, cudaSuccess); }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = dmamba_said_architecture;
  if (dmamba_said_architecture == 0) dmamba_last_error = cudaErrorNoKernelImageForDevice;
  return dmamba_last_error;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t*) {
  constexpr int kClusters = 16;
  *clusters = kClusters;
  return cudaSuccess;
}
inline bool dmamba_launched_early = false;  // the last launch

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               const Args&... args) {
  constexpr size_t kUsual = 48 * 1024;
  const dim3 grid = config->gridDim;
  const auto asked = dmamba_most_shared.find(reinterpret_cast<const void*>(kernel));
  const size_t most = asked == dmamba_most_shared.end() ? kUsual : asked->second;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidValue;
  if (config->dynamicSmemBytes > std::max(most, kUsual)) return cudaErrorInvalidValue;
  unsigned cluster = 1;
  dmamba_launched_early = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) cluster = attribute.val.clusterDim.x;
    dmamba_launched_early |= attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization;
  }
  const std::tuple<std::decay_t<Params>...> values(args...);
  dmamba::emulation::run_grid(grid, config->blockDim, cluster, config->dynamicSmemBytes,
                              [&] { std::apply(kernel, values); });
  return cudaSuccess;
}

// Graphs and events

using cudaGraph_t = struct Graph*;
using cudaGraphExec_t = struct GraphExec*;
using cudaEvent_t = struct Event*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal };

inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  return cudaErrorNotSupported;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) {
  return cudaErrorNotSupported;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, int) {
  return cudaErrorNotSupported;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaEventCreate(cudaEvent_t*) { return cudaErrorNotSupported; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t) {
  return cudaErrorNotSupported;
}
