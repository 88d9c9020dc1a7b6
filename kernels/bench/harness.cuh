// What the stand-alone benchmarks share: device arrays of random numbers, times by graph replay,
// the device's own ceilings.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "kernels/bench/errors.h"
#include "kernels/common/launch.cuh"

namespace dmamba::bench {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

/// Device memory that frees itself; begins as NaN, so that what is never written shows.
class DeviceArray {
 public:
  explicit DeviceArray(size_t bytes) : bytes_(bytes) {
    check(cudaMalloc(&data_, bytes_ + 256), "cudaMalloc");
    check(cudaMemset(data_, 0xFF, bytes_), "cudaMemset");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(DeviceArray&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  DeviceArray& operator=(DeviceArray&&) = delete;
  void* get() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

/// Random numbers on the device, and the same, rounded as stored, on the host.
struct Input {
  DeviceArray device;
  std::vector<float> host;
};

/// Numbers in storage, and what they are there.
inline Input to_device(std::vector<float> host, bool bf16) {
  DeviceArray device(host.size() * (bf16 ? 2 : 4));
  if (bf16) {
    std::vector<__nv_bfloat16> narrow(host.size());
    for (size_t i = 0; i < host.size(); ++i) {
      narrow[i] = __float2bfloat16(host[i]);
      host[i] = __bfloat162float(narrow[i]);
    }
    check(cudaMemcpy(device.get(), narrow.data(), 2 * host.size(), cudaMemcpyHostToDevice), "copy");
  } else {
    check(cudaMemcpy(device.get(), host.data(), 4 * host.size(), cudaMemcpyHostToDevice), "copy");
  }
  return {std::move(device), std::move(host)};
}

inline std::vector<float> random_numbers(std::mt19937& random, int64_t count, float low,
                                         float high) {
  constexpr size_t kPeriod = 1048573;  // a prime: what repeats in long arrays repeats nowhere else
  std::vector<float> host(static_cast<size_t>(count));
  for (size_t i = 0; i < host.size(); ++i) {
    float& x = host[i];
    if (i >= kPeriod) {
      x = host[i - kPeriod];
      continue;
    }
    x = low + (high - low) * static_cast<float>(random() >> 8) * 0x1p-24F;
  }
  return host;
}

inline Input random_input(std::mt19937& random, int64_t count, bool bf16, float low, float high) {
  return to_device(random_numbers(random, count, low, high), bf16);
}

inline std::vector<float> to_host(const DeviceArray& array, int64_t count, bool bf16) {
  std::vector<float> host(static_cast<size_t>(count));
  if (!bf16) {
    check(cudaMemcpy(host.data(), array.get(), 4 * host.size(), cudaMemcpyDeviceToHost), "copy");
    return host;
  }
  std::vector<__nv_bfloat16> narrow(host.size());
  check(cudaMemcpy(narrow.data(), array.get(), 2 * host.size(), cudaMemcpyDeviceToHost), "copy");
  std::transform(narrow.begin(), narrow.end(), host.begin(),
                 [](__nv_bfloat16 x) { return __bfloat162float(x); });
  return host;
}

struct Times {
  double median, low, high;  // microseconds; quartiles
};

/// Captures ten calls in a graph and times its replays.
inline Times time_by_replay(cudaStream_t stream, const std::function<void()>& call) {
  constexpr int kCalls = 10, kReplays = 31;
  call();
  check(cudaStreamSynchronize(stream), "warm-up");
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  for (int i = 0; i < kCalls; ++i) call();
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int i = 0; i < kReplays + 3; ++i) {
    check(cudaEventRecord(begin, stream), "record");
    check(cudaGraphLaunch(executable, stream), "replay");
    check(cudaEventRecord(end, stream), "record");
    check(cudaEventSynchronize(end), "replay");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "time");
    if (i >= 3) times.push_back(1e3 * milliseconds / kCalls);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[times.size() / 4], times[3 * times.size() / 4]};
}

template <class T>
__global__ void copy_kernel(const T* __restrict__ from, T* __restrict__ to, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = from[i];
  }
}

/// Bytes a microsecond (read and written) of a large copy.
inline double copy_bandwidth(cudaStream_t stream) {
  constexpr size_t kBytes = size_t{1} << 31;
  DeviceArray from(kBytes), to(kBytes);
  const int64_t count = kBytes / sizeof(float4);
  const Times times = time_by_replay(stream, [&] {
    check(kernels::launch_kernel(copy_kernel<float4>, static_cast<unsigned>(count / 1024), 1024, 0,
                                 stream, from.as<float4>(), to.as<float4>(), count),
          "copy");
  });
  return 2.0 * kBytes / times.median;
}

/// Exponentials a microsecond: 16 a clock and multiprocessor, at the highest clock.
inline double exponential_rate() {
  int clock_khz = 0, multiprocessors = 0;
  check(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0), "clock");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "device");
  return 16.0 * multiprocessors * clock_khz * 1e-3;
}

/// Prints the device; the stream that everything runs on.
inline cudaStream_t open_device() {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "device");
  std::printf("%s, CUDA runtime %d\n", properties.name, CUDART_VERSION);
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  return stream;
}

inline int multiprocessors() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "device");
  return count;
}

}  // namespace dmamba::bench
