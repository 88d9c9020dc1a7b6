// The table of encoders, and the residual one.
#include "dmamba/nn/frame_encoder.h"

#include <torch/torch.h>

#include "dmamba/common/error.h"
#include "src/nn/nature_encoder.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;
using torch::nn::Conv2d;
using torch::nn::Conv2dOptions;

/// x + conv(relu(conv(relu(x))))
class ResidualPair : public torch::nn::Module {
 public:
  explicit ResidualPair(int64_t channels) {
    const auto options = Conv2dOptions(channels, channels, 3).padding(1);
    first_ = register_module("conv0", Conv2d(options));
    second_ = register_module("conv1", Conv2d(options));
  }
  Tensor forward(const Tensor& x) {
    return x + second_->forward(torch::relu(first_->forward(torch::relu(x))));
  }

 private:
  Conv2d first_{nullptr}, second_{nullptr};
};

class ImpalaEncoder final : public FrameEncoder {
 public:
  explicit ImpalaEncoder(int64_t d_model) {
    int64_t channels = kFrameStack, side = kFrameSide;
    for (const int64_t width : {16, 32, 32}) {
      const std::string name = "stage" + std::to_string(stages_.size());
      Stage stage;
      stage.down =
          register_module(name, Conv2d(Conv2dOptions(channels, width, 3).stride(2).padding(1)));
      for (const char* part : {"_residual0", "_residual1"}) {
        stage.pairs.push_back(register_module(name + part, std::make_shared<ResidualPair>(width)));
      }
      stages_.push_back(std::move(stage));
      channels = width;
      side = (side + 1) / 2;
    }
    linear_ = register_module("linear", torch::nn::Linear(channels * side * side, d_model));
  }

  Tensor forward(const Tensor& stacks) override {
    const auto dtype = linear_->weight.scalar_type();
    Tensor x =
        stacks.to(dtype, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::ChannelsLast) /
        255.0;
    for (auto& stage : stages_) {
      x = stage.down->forward(x);
      for (auto& pair : stage.pairs) x = pair->forward(x);
    }
    return torch::tanh(linear_->forward(torch::relu(x).flatten(1)));
  }

 private:
  struct Stage {
    Conv2d down{nullptr};
    std::vector<std::shared_ptr<ResidualPair>> pairs;
  };
  std::vector<Stage> stages_;
  torch::nn::Linear linear_{nullptr};
};

struct Entry {
  const char* name;
  std::shared_ptr<FrameEncoder> (*make)(int64_t d_model);
};

constexpr Entry kEncoders[] = {
    {"nature",
     [](int64_t d_model) -> std::shared_ptr<FrameEncoder> {
       return std::make_shared<NatureEncoder>(d_model);
     }},
    {"impala",
     [](int64_t d_model) -> std::shared_ptr<FrameEncoder> {
       return std::make_shared<ImpalaEncoder>(d_model);
     }},
};

}  // namespace

torch::Tensor FrameEncoder::forward_strips(const Tensor& strips) {
  const int64_t steps = strips.size(1) - (kFrameStack - 1);
  return forward(strips.unfold(1, kFrameStack, 1)
                     .permute({0, 1, 4, 2, 3})
                     .reshape({strips.size(0) * steps, kFrameStack, kFrameSide, kFrameSide}));
}

std::shared_ptr<FrameEncoder> make_frame_encoder(const std::string& name, int64_t d_model) {
  std::string known;
  for (const Entry& entry : kEncoders) {
    if (name == entry.name) return entry.make(d_model);
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw ConfigError("model.encoder: '" + name + "' is unknown; choose one of " + known);
}

}  // namespace dmamba::nn
