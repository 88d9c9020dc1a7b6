// What one call of an op on a CUDA device holds: the device, its stream, copies of inputs, scratch.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "src/ops/checks.h"
#include "src/ops/graph.h"
#include "src/ops/tensors.h"

namespace dmamba::ops::cuda {

/// 10 times the major number of a device's compute capability, and the minor one; 0 where it is not
/// known.
inline int architecture_of(int device) {
  int major = 0, minor = 0;
  const bool known =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  return known ? 10 * major + minor : 0;
}

/// Whether kernels of Hopper's own instructions run there.
inline bool is_hopper(at::Device device) {
  return architecture_of(device.index()) == kernels::kHopperArchitecture;
}

/// Whether products of such factors may be rounded: of bfloat16, and of float32 where TF32 is on.
inline bool products_are_rounded(at::ScalarType type) {
  return type == at::kBFloat16 ||
         (type == at::kFloat &&
          at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
              at::Float32Precision::TF32);
}

/// Checks what a call of CUDA returned.
inline void check_cuda(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or torch's next check would find it
  TORCH_CHECK(false, op, ": ", cudaGetErrorString(error));
}

/// Checks that the CUDA kernels can store activations like t: float32 or bfloat16.
inline void check_cuda_storage(const char* op, const char* name, const at::Tensor& t) {
  check_activation(op, name, t);
  TORCH_CHECK(t.scalar_type() != at::kDouble, op, ": ", name,
              " is float64, which the CUDA kernels don't compute in; use float32 or bfloat16, or "
              "move the tensors to the CPU");
}

/// Checks a gradient that comes back: as `like`, whatever its strides.
inline void check_gradient(const char* op, const char* name, const at::Tensor& t,
                           const at::Tensor& like, const char* like_name) {
  TORCH_CHECK(t.sizes() == like.sizes() && t.scalar_type() == like.scalar_type() &&
                  t.device() == like.device(),
              op, ": ", name, " must be as ", like_name, ", ", like.sizes(), " ",
              like.scalar_type(), " on ", like.device(), ", got ", t.sizes(), " ", t.scalar_type(),
              " on ", t.device());
}

/// Checks an optional gradient of a state (batch, d_inner, width): shape, dtype, device.
inline void check_state_gradient(const char* op, const OptionalTensor& t, const at::Tensor& u,
                                 int64_t width) {
  if (!present(t)) return;
  TORCH_CHECK(t->sizes() == at::IntArrayRef({u.size(0), u.size(2), width}) &&
                  t->scalar_type() == at::kFloat && t->device() == u.device(),
              op, ": dlast_state must be (", u.size(0), ", ", u.size(2), ", ", width,
              ") float32 on ", u.device(), ", got ", t->sizes(), " ", t->scalar_type(), " on ",
              t->device());
}

/// The gradient as an op returns it: an empty tensor where the input was absent.
inline at::Tensor or_absent_gradient(const at::Tensor& gradient, const at::Tensor& activations) {
  return gradient.defined() ? gradient : absent_gradient(activations);
}

/// Makes the device of `like` current for the call's lifetime and takes its current stream. Memory
/// comes from the caching allocator, which gives it back in the stream's order: nothing waits, so
/// that a call can be captured in a CUDA graph.
class Call {
 public:
  Call(const char* op, const at::Tensor& like)
      : op_(op), guard_(like.device()), stream_(c10::cuda::getCurrentCUDAStream()), like_(like) {}

  cudaStream_t stream() const { return stream_; }

  void* scratch(size_t bytes) {
    if (bytes == 0) return nullptr;
    scratch_ = at::empty({static_cast<int64_t>(bytes)}, like_.options().dtype(at::kByte));
    return scratch_.mutable_data_ptr();
  }

  /// What scratch() gave, for work that outlives the call.
  const at::Tensor& scratch_memory() const { return scratch_; }

  /// For a call that goes on where another has ended.
  void keep_scratch(const at::Tensor& memory) { scratch_ = memory; }

  /// Launches sums that only parameters' gradients need: on the side stream where there is one, or
  /// else in line. They may read the scratch.
  template <class F>
  void beside(F&& launch) {
    SideStream* side = SumsBeside::current();
    if (side == nullptr) return check(launch(stream()));
    side->run([&] { check(launch(c10::cuda::getCurrentCUDAStream())); }, {scratch_});
  }

  void check(cudaError_t error) const { check_cuda(op_, error); }

  int multiprocessors() const {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount,
                                 guard_.current_device().index()));
    return count;
  }

 private:
  const char* op_;
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
  const at::Tensor& like_;
  at::Tensor scratch_;
};

/// Views of a call's inputs, and the copies behind them: only sequences whose last axis is not
/// contiguous, vectors and flags with gaps are copied.
class Inputs {
 public:
  kernels::Sequence rows(const OptionalTensor& t) {
    return present(t) ? sequence(keep(with_contiguous_rows(*t))) : kernels::Sequence{};
  }
  const void* vector(const OptionalTensor& t) {
    return present(t) ? keep(t->contiguous()).const_data_ptr() : nullptr;
  }
  kernels::Flags flags(const OptionalTensor& t) {
    return {present(t) ? keep(t->contiguous()).const_data_ptr<bool>() : nullptr};
  }
  static kernels::StateView state(const OptionalTensor& t) {
    return present(t) ? state_view(*t) : kernels::StateView{};
  }

 private:
  const at::Tensor& keep(at::Tensor t) {
    kept_[count_++] = std::move(t);
    return kept_[count_ - 1];
  }
  at::Tensor kept_[16];
  int count_ = 0;
};

}  // namespace dmamba::ops::cuda
