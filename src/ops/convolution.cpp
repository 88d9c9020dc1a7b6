// ATen's convolution under settings of our own.
#include "src/ops/convolution.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <mutex>

namespace dmamba::ops {
namespace {

constexpr auto kBackend = at::Float32Backend::CUDA;
constexpr auto kOp = at::Float32Op::CONV;

at::Context& context() { return at::globalContext(); }

/// The settings are the process's: the first scope changes them, the last one restores them. Scopes
/// of different precision must not overlap, as trainers of different precision must not.
struct Shared {
  std::mutex mutex;
  int scopes = 0;
  bool deterministic = false, benchmark = false;
  at::Float32Precision precision = at::Float32Precision::NONE, wanted = precision;

  void enter() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (scopes > 0) {
      ++scopes;
      return;
    }
    deterministic = context().deterministicCuDNN();
    benchmark = context().benchmarkCuDNN();
    precision = context().float32Precision(kBackend, kOp);
    const bool tf32 =
        context().float32Precision(kBackend, at::Float32Op::MATMUL) == at::Float32Precision::TF32;
    wanted = tf32 ? at::Float32Precision::TF32 : at::Float32Precision::IEEE;
    context().setDeterministicCuDNN(true);
    context().setBenchmarkCuDNN(false);
    if (wanted != precision) context().setFloat32Precision(kBackend, kOp, wanted);
    scopes = 1;
  }

  void leave() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (--scopes > 0) return;
    context().setDeterministicCuDNN(deterministic);
    context().setBenchmarkCuDNN(benchmark);
    if (wanted != precision) context().setFloat32Precision(kBackend, kOp, precision);
  }
};

Shared& shared() {
  static Shared settings;
  return settings;
}

}  // namespace

ConvolutionSettings::ConvolutionSettings() { shared().enter(); }
ConvolutionSettings::~ConvolutionSettings() { shared().leave(); }

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight) {
  const ConvolutionSettings settings;
  return at::conv2d(x, weight);
}

std::pair<at::Tensor, at::Tensor> convolve_backward(const at::Tensor& dy, const at::Tensor& x,
                                                    const at::Tensor& weight, bool wants_dx) {
  const ConvolutionSettings settings;
  const std::vector<int64_t> one{1, 1}, zero{0, 0};
  auto [dx, dweight, dbias] =
      at::convolution_backward(dy, x, weight, std::nullopt, one, zero, one,
                               /*transposed=*/false, zero, /*groups=*/1, {wants_dx, true, false});
  return {dx, dweight};
}

}  // namespace dmamba::ops
