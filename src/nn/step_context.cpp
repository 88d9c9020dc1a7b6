// The context of a training step, per thread.
#include "src/nn/step_context.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <algorithm>

#include "dmamba/nn/elementwise.h"
#include "src/nn/plain_dispatch.h"

namespace dmamba::nn {
namespace {

thread_local StepContext* current_context = nullptr;
thread_local const std::unordered_map<const c10::TensorImpl*, torch::Tensor>* current_mirrors =
    nullptr;

/// Whether this thread's step has a key of its own for the next dropout.
bool has_key() {
  const StepContext* context = current_context;
  if (context == nullptr) return false;
  if (context->keys_used < context->dropout_keys.numel()) return true;
  TORCH_CHECK(context->draws_more,
              "a dropout was used more than once in a step, which can't be "
              "recorded as a CUDA graph; set training.graph to auto or off");
  return false;
}

int64_t use_key(StepContext& context) { return context.keys_used++; }

/// What the optimizer keeps beside this parameter, or a forward pass; null: nothing.
const torch::Tensor* mirror_of(const torch::Tensor& parameter) {
  const auto* kept = current_context != nullptr ? &current_context->mirrors : current_mirrors;
  if (kept == nullptr) return nullptr;
  const auto found = kept->find(parameter.unsafeGetTensorImpl());
  return found == kept->end() ? nullptr : &found->second;
}

int64_t draw_key() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return static_cast<int64_t>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64());
}

}  // namespace

int64_t count_dropouts(const torch::nn::Module& model) {
  int64_t count = 0;
  for (const auto& module : model.modules()) {
    if (module->as<DropoutImpl>() != nullptr) ++count;
  }
  return count;
}

StepScope::StepScope(StepContext& context) : outer_(current_context) {
  context.keys_used = 0;
  current_context = &context;
}
StepScope::~StepScope() { current_context = outer_; }
StepContext* StepScope::current() { return current_context; }

MirrorScope::MirrorScope(const std::vector<torch::Tensor>& matrices,
                         const std::vector<torch::Tensor>& A_logs)
    : outer_(current_mirrors) {
  std::vector<ops::cuda_only::Mirrored> list;
  const auto add = [&](const torch::Tensor& parameter, at::ScalarType type) {
    const torch::Tensor mirror =
        at::empty(parameter.sizes(), at::TensorOptions(parameter.device()).dtype(type));
    list.push_back({parameter, mirror});
    mirrors_.emplace(parameter.unsafeGetTensorImpl(), mirror);
  };
  for (const torch::Tensor& matrix : matrices) add(matrix, at::kBFloat16);
  for (const torch::Tensor& A_log : A_logs) add(A_log, at::kFloat);
  ops::cuda_only::write_mirrors(list);
  current_mirrors = &mirrors_;
}
MirrorScope::~MirrorScope() { current_mirrors = outer_; }

int64_t next_dropout_key() {
  if (!has_key()) return draw_key();
  return current_context->dropout_keys.const_data_ptr<int64_t>()[use_key(*current_context)];
}

ops::cuda_only::Dropout next_dropout(double p, torch::Device device, int64_t row_elements) {
  if (!has_key()) {
    return {p, at::full({}, draw_key(), at::TensorOptions(device).dtype(at::kLong)),
            first_element(row_elements)};
  }
  return {p, current_context->dropout_keys.select(0, use_key(*current_context)),
          first_element(row_elements)};
}

int64_t first_element(int64_t row_elements) {
  return current_context == nullptr ? 0 : current_context->first_row * row_elements;
}

torch::Tensor decay_rates(const torch::Tensor& A_log) {
  if (!A_log.is_cuda()) return at::exp(A_log).neg_();
  const torch::Tensor* kept = mirror_of(A_log);
  return kept != nullptr ? *kept : ops::cuda_only::decay_rates(A_log);
}

torch::Tensor cast_parameter(const torch::Tensor& parameter, at::ScalarType type) {
  if (parameter.scalar_type() == type) return parameter;
  const torch::Tensor* kept = type == at::kBFloat16 ? mirror_of(parameter) : nullptr;
  return kept != nullptr ? *kept : parameter.to(type);
}

int64_t side_stream_handle() {
  return current_context == nullptr ? 0 : reinterpret_cast<int64_t>(current_context->side);
}

ops::SideStream* side_stream(int64_t handle) {
  // A saved number is all that an autograd context takes along.
  return reinterpret_cast<ops::SideStream*>(handle);  // NOLINT(performance-no-int-to-ptr)
}

void run_beside(int64_t handle, const std::function<void()>& work,
                std::vector<torch::Tensor> inputs) {
  if (handle == 0) {
    work();
  } else {
    side_stream(handle)->run(work, std::move(inputs));
  }
}

torch::Tensor weight_gradient_beside(int64_t handle, const torch::Tensor& dy,
                                     const torch::Tensor& x, at::ScalarType parameter) {
  torch::Tensor gradient;
  if (handle != 0 && parameter == at::kFloat) {
    gradient = side_stream(handle)->weight_gradient(dy, x);
  }
  if (!gradient.defined()) {
    run_beside(handle, [&] { gradient = weight_gradient(dy, x).to(parameter); }, {dy, x});
  }
  return gradient;
}

void WeightGradients::ask(torch::Tensor& gradient, const torch::Tensor& dy,
                          const torch::Tensor& x) {
  if (handle_ != 0 || !dy.is_cuda()) {
    gradient = weight_gradient_beside(handle_, dy, x, parameter_);
  } else {
    asked_.push_back({&gradient, dy, x});
  }
}

void WeightGradients::finish() {
  const bool together =
      parameter_ == at::kFloat && !asked_.empty() && std::ranges::all_of(asked_, [](const auto& a) {
        return ops::cuda_only::weight_gradient_pays(a.dy, a.x);
      });
  std::vector<ops::cuda_only::WeightGradient> list;
  for (const Asked& a : asked_) {
    if (!together) {
      *a.gradient = weight_gradient_beside(0, a.dy, a.x, parameter_);
      continue;
    }
    *a.gradient = at::empty({a.dy.size(1), a.x.size(1)}, a.x.options().dtype(at::kFloat));
    list.push_back({a.dy, a.x, a.gradient->mutable_data_ptr<float>()});
  }
  if (together) ops::cuda_only::weight_gradients(list);
  asked_.clear();
}

}  // namespace dmamba::nn
