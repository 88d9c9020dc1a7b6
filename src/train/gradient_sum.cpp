// Buckets, hooks, the pass.
//
// On CUDA a bucket is copied and its sum begun on the stream beside, after the weights' gradients
// that are computed there; NCCL works on a stream of its own, and all of it can be captured.
#include "src/train/gradient_sum.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <numeric>
#include <utility>

namespace dmamba::train {

using torch::Tensor;

namespace {

constexpr int64_t kAlignment = 64;  // elements: a parameter's place suits any vector access

int64_t aligned(int64_t count) { return (count + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

/// Calls `arrived` whenever a parameter's gradient has come.
struct GradientSum::Hook {
  using Node = decltype(torch::autograd::impl::grad_accumulator(std::declval<Tensor&>()));
  using Values = torch::autograd::variable_list;

  Hook(const Tensor& parameter, std::function<void()> arrived)
      : node(torch::autograd::impl::grad_accumulator(parameter)) {
    key = node->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
        [arrived = std::move(arrived)](const Values& outputs, const Values&) {
          arrived();
          return outputs;
        }));
  }
  ~Hook() { node->del_post_hook(key); }
  Hook(const Hook&) = delete;
  Hook& operator=(const Hook&) = delete;

  Node node;  // the parameter itself does not hold it
  uintptr_t key;
};

GradientSum::GradientSum(const torch::nn::Module& model, std::shared_ptr<Ranks> ranks, double scale,
                         ops::SideStream* side)
    : all_(model.parameters()), ranks_(std::move(ranks)), scale_(scale), side_(side) {
  std::reverse(all_.begin(), all_.end());
}

GradientSum::~GradientSum() = default;

void GradientSum::prepare() {
  std::vector<Tensor> trained;
  for (const Tensor& tensor : all_) {
    if (tensor.requires_grad()) trained.push_back(tensor);
  }
  const bool same = std::equal(
      trained.begin(), trained.end(), trained_.begin(), trained_.end(),
      [](const Tensor& tensor, const Parameter& known) { return tensor.is_same(known.tensor); });
  if (same && !trained.empty()) return;
  TORCH_CHECK(!trained.empty(), "no parameter requires a gradient; nothing to train");
  trained_.clear();
  for (const Tensor& tensor : trained) trained_.push_back({tensor, Tensor(), 0});
  make_buckets();
  add_hooks();
}

void GradientSum::make_buckets() {
  buckets_.clear();
  const int64_t element = trained_[0].tensor.element_size();
  const int64_t most = std::max<int64_t>(1, ranks_->bucket_bytes() / element);
  int64_t count = 0;
  const auto close = [&](size_t end, int64_t more) {
    Bucket& bucket = buckets_.back();
    bucket.end = end;
    bucket.flat = torch::zeros({count + more}, trained_[0].tensor.options().requires_grad(false));
    int64_t at = 0;
    for (size_t i = bucket.begin; i < end; ++i) {
      const Tensor& tensor = trained_[i].tensor;
      trained_[i].bucket = buckets_.size() - 1;
      trained_[i].sum = bucket.flat.narrow(0, at, tensor.numel()).view(tensor.sizes());
      at += aligned(tensor.numel());
    }
    count = 0;
  };
  for (size_t i = 0; i < trained_.size(); ++i) {
    const int64_t size = aligned(trained_[i].tensor.numel());
    if (count > 0 && count + size > most) close(i, 0);
    if (count == 0) buckets_.emplace_back().begin = i;
    count += size;
  }
  close(trained_.size(), 2);
  const Tensor& last = buckets_.back().flat;
  loss_and_steps_ = last.narrow(0, last.numel() - 2, 2);
}

void GradientSum::add_hooks() {
  hooks_.clear();
  for (size_t i = 0; i < trained_.size(); ++i) {
    hooks_.push_back(std::make_unique<Hook>(trained_[i].tensor, [this, i] { arrived(i); }));
  }
}

void GradientSum::arrived(size_t parameter) {
  if (!running_) return;
  --buckets_[trained_[parameter].bucket].missing;
  while (next_ < buckets_.size() && buckets_[next_].missing == 0) launch(buckets_[next_++]);
}

void GradientSum::beside(const std::function<void()>& work, std::vector<Tensor> inputs) {
  const torch::NoGradGuard no_grad;
  if (side_ == nullptr) {
    work();
  } else {
    side_->run(work, std::move(inputs));
  }
}

void GradientSum::launch(Bucket& bucket) {
  if (side_ != nullptr) side_->launch_weight_gradients();
  std::vector<Tensor> gradients, places;
  for (size_t i = bucket.begin; i < bucket.end; ++i) {
    const Tensor& gradient = trained_[i].tensor.grad();
    if (gradient.defined()) {
      gradients.push_back(gradient);
      places.push_back(trained_[i].sum);
    }
  }
  beside(
      [&] {
        // A parameter that the loss does not depend on has none, and its place last step's sum.
        if (gradients.size() < bucket.end - bucket.begin) {
          for (size_t i = bucket.begin; i < bucket.end; ++i) {
            if (!trained_[i].tensor.grad().defined()) trained_[i].sum.zero_();
          }
        }
        if (!gradients.empty()) at::_foreach_copy_(places, gradients);
        bucket.pending = ranks_->begin_sum(bucket.flat);
      },
      gradients);
}

Tensor GradientSum::backward(const Tensor& loss, const Tensor& real_steps) {
  for (Bucket& bucket : buckets_) bucket.missing = bucket.end - bucket.begin;
  next_ = 0;
  const Tensor weight = real_steps * scale_, value = loss.detach();
  beside([&] { loss_and_steps_.copy_(torch::stack({value * weight, weight})); }, {value, weight});
  running_ = true;
  try {
    loss.backward(weight);
  } catch (...) {
    running_ = false;
    throw;
  }
  running_ = false;
  while (next_ < buckets_.size()) launch(buckets_[next_++]);
  if (side_ != nullptr) side_->join();

  const torch::NoGradGuard no_grad;
  std::vector<Tensor> sums;
  for (Bucket& bucket : buckets_) {
    ranks_->end_sum(bucket.pending);
    bucket.pending.reset();
    sums.push_back(bucket.flat);
  }
  at::_foreach_mul_(sums, loss_and_steps_.select(0, 1).reciprocal());
  for (const Parameter& parameter : trained_) parameter.tensor.mutable_grad() = parameter.sum;
  return loss_and_steps_.select(0, 0);
}

}  // namespace dmamba::train
