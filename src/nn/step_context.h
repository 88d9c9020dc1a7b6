// What a trainer lends the layers for the length of a training step.
#pragma once

#include <torch/nn.h>

#include <functional>
#include <unordered_map>
#include <vector>

#include "src/ops/cuda_only.h"
#include "src/ops/graph.h"

namespace dmamba::nn {

struct StepContext {
  torch::Tensor dropout_keys;  // (n,) int64 on the parameters' device: a step's, in order of use
  int64_t keys_used = 0;
  bool draws_more = false;  // keys beyond those are drawn from torch's default generator
  int64_t first_row = 0;    // of the step's whole batch, which the layers' first row is
  /// What the optimizer keeps beside parameters: matrices in bfloat16, so that none is cast at its
  /// use, and -exp(A_log).
  std::unordered_map<const c10::TensorImpl*, torch::Tensor> mirrors;
  ops::SideStream* side = nullptr;  // where weights' gradients are computed; none: in line
};

/// Keys that a step of the model needs: its Dropout modules, each used once.
int64_t count_dropouts(const torch::nn::Module& model);

/// Lends a context to the layers that this thread calls, and begins with its first key.
class StepScope {
 public:
  explicit StepScope(StepContext& context);
  ~StepScope();
  StepScope(const StepScope&) = delete;
  StepScope& operator=(const StepScope&) = delete;

  /// This thread's; null outside of any.
  static StepContext* current();

 private:
  StepContext* outer_;
};

/// For a forward pass that no trainer lends mirrors to: those of a module's parameters on CUDA, all
/// in one launch, for as long as it lives.
class MirrorScope {
 public:
  /// matrices, to be cast to bfloat16, and logarithms of decay rates; float32 and contiguous.
  MirrorScope(const std::vector<torch::Tensor>& matrices, const std::vector<torch::Tensor>& A_logs);
  ~MirrorScope();
  MirrorScope(const MirrorScope&) = delete;
  MirrorScope& operator=(const MirrorScope&) = delete;

 private:
  using Mirrors = std::unordered_map<const c10::TensorImpl*, torch::Tensor>;
  Mirrors mirrors_;
  const Mirrors* outer_;
};

/// The key of the next dropout of this thread, on the host: the step's, or else one number of
/// torch's default generator.
int64_t next_dropout_key();

/// The next dropout of this thread on a CUDA device, of rows of `row_elements` elements each; the
/// host does not read the key there.
ops::cuda_only::Dropout next_dropout(double p, torch::Device device, int64_t row_elements);

/// The number of the first element, in the step's whole batch, of rows of `row_elements` each.
int64_t first_element(int64_t row_elements);

/// The parameter in another type, which is its mirror where there is one.
torch::Tensor cast_parameter(const torch::Tensor& parameter, at::ScalarType type);

/// -exp(A_log), kept or computed.
torch::Tensor decay_rates(const torch::Tensor& A_log);

/// This thread's side stream for a backward pass, which may run in another thread: kept by the
/// forward pass in saved_data["side"].
int64_t side_stream_handle();

/// The side stream of that handle; null: none.
ops::SideStream* side_stream(int64_t handle);

/// Runs `work`, whose results only the optimizer reads, on the side stream of that handle or here.
void run_beside(int64_t handle, const std::function<void()>& work,
                std::vector<torch::Tensor> inputs);

/// The gradient dy^T x (n, m), of type `parameter`, of a weight for dy (rows, n) and x (rows, m),
/// which only the optimizer reads: on the side stream of that handle, if possible with the step's
/// others, or here. Only for a weight whose gradient is taken: freed memory would be written later.
torch::Tensor weight_gradient_beside(int64_t handle, const torch::Tensor& dy,
                                     const torch::Tensor& x, at::ScalarType parameter);

/// The same for some weights of a backward pass: without a side stream in one launch, where that
/// was measured to be faster. The order of sums depends on which are asked for together.
class WeightGradients {
 public:
  WeightGradients(int64_t handle, at::ScalarType parameter)
      : handle_(handle), parameter_(parameter) {}
  /// `gradient` is there after finish() at the latest.
  void ask(torch::Tensor& gradient, const torch::Tensor& dy, const torch::Tensor& x);
  void finish();

 private:
  struct Asked {
    torch::Tensor* gradient;
    torch::Tensor dy, x;
  };
  int64_t handle_;
  at::ScalarType parameter_;
  std::vector<Asked> asked_;
};

}  // namespace dmamba::nn
