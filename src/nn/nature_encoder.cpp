// The paper's encoder. On CUDA its convolutions run on folded pixels.
//
// A convolution of stride s over c channels is one of stride 1 over s s c channels once squares of
// s x s pixels are folded into the channels: 8 x 8 / 4 over 4 frames becomes 2 x 2 / 1 over 64
// channels, 4 x 4 / 2 over 32 becomes 2 x 2 / 1 over 128. Channels lie innermost, so that the
// tensor cores get whole rows; with 4 frames as channels they would idle. The frames go in as 0 to
// 255, which bfloat16 holds exactly; the 1 / 255 is part of the first weight.
//
// Forward and backward are one function: bias, ReLU and folding are one launch a layer, and what
// the backward pass keeps are the folded activations. In bfloat16 the first layer, whose folded
// input would be the largest tensor of all, is a kernel that reads the bytes (kernels/frames).
#include "src/nn/nature_encoder.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/torch.h>

#include <array>

#include "dmamba/ops/ops.h"
#include "src/nn/plain_dispatch.h"
#include "src/ops/convolution.h"
#include "src/ops/cuda_only.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
namespace cuda_only = ops::cuda_only;

constexpr int64_t kPixelScale = 255;

/// A convolution on folded pixels: `fold` is the stride of the plain one.
struct Layer {
  int64_t fold;
  bool pixels;  // its input are frames, 0 to 255
};
constexpr std::array<Layer, 3> kLayers{{{4, true}, {2, false}, {1, false}}};

/// (out, in, k, k) -> (out, fold fold in, k / fold, k / fold), channels innermost in memory.
Tensor fold_weight(const Tensor& weight, const Layer& layer) {
  const int64_t out = weight.size(0), in = weight.size(1), s = layer.fold, k = weight.size(2) / s;
  const Tensor parts = weight.view({out, in, k, s, k, s});
  // Frames: the frame, then the pixel in the square; else the pixel, then the channel.
  const Tensor folded =
      layer.pixels ? parts.permute({0, 1, 3, 5, 2, 4}) : parts.permute({0, 3, 5, 1, 2, 4});
  return folded.reshape({out, s * s * in, k, k});
}

/// The way back, for a gradient.
Tensor unfold_weight(const Tensor& folded, const Tensor& weight, const Layer& layer) {
  const int64_t out = weight.size(0), in = weight.size(1), s = layer.fold, k = weight.size(2) / s;
  if (layer.pixels) {
    return folded.view({out, in, s, s, k, k}).permute({0, 1, 4, 2, 5, 3}).reshape(weight.sizes());
  }
  return folded.view({out, s, s, in, k, k}).permute({0, 3, 4, 1, 5, 2}).reshape(weight.sizes());
}

/// (out, channels y x) -> (out, y x channels), the order of an activation with channels innermost.
Tensor reorder(const Tensor& weight, int64_t from, int64_t to) {
  return weight.view({weight.size(0), from, to}).transpose(1, 2).reshape(weight.sizes());
}

/// Weights as the products take them.
Tensor prepared(const Tensor& weight, const Layer& layer, at::ScalarType type) {
  const Tensor folded = fold_weight(weight, layer);
  return (layer.pixels ? folded / static_cast<double>(kPixelScale) : folded)
      .to(type, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::ChannelsLast);
}

/// In bfloat16 the first layer is a kernel of our own, which reads bytes and leaves activations.
bool has_own_kernel(size_t layer, at::ScalarType type) {
  return kLayers[layer].pixels && type == at::kBFloat16;
}

/// (out, in, 8, 8) -> (out, in, 2, 2, 4, 4), over 255: as that kernel takes it.
Tensor first_weight(const Tensor& weight) {
  return (weight.view({32, 4, 2, 4, 2, 4}).permute({0, 1, 2, 4, 3, 5}) /
          static_cast<double>(kPixelScale))
      .to(at::kBFloat16, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous);
}

Tensor first_weight_gradient(const Tensor& folded, const Tensor& weight) {
  return folded.view({32, 4, 2, 2, 4, 4})
      .permute({0, 1, 2, 4, 3, 5})
      .reshape(weight.sizes())
      .div(static_cast<double>(kPixelScale));
}

struct Nature : torch::autograd::Function<Nature> {
  static Tensor forward(AutogradContext* context, const Tensor& strips, const Tensor& weight1,
                        const Tensor& bias1, const Tensor& weight2, const Tensor& bias2,
                        const Tensor& weight3, const Tensor& bias3, const Tensor& weight4,
                        const Tensor& bias4, at::ScalarType type) {
    const PlainDispatch guard;
    const std::array<Tensor, 3> weights{weight1, weight2, weight3}, biases{bias1, bias2, bias3};
    std::array<Tensor, 4> inputs;  // of the layers; the last is what they leave
    std::array<Tensor, 3> kernels;
    for (size_t i = 0; i < 3; ++i) {
      const int64_t fold = i < 2 ? kLayers[i + 1].fold : 1;
      if (has_own_kernel(i, type)) {
        inputs[i] = strips;
        inputs[i + 1] = cuda_only::first_convolution(strips, first_weight(weights[i]), biases[i]);
        kernels[i] = weights[i];
        continue;
      }
      if (i == 0) inputs[i] = cuda_only::fold_frames(strips, type);
      kernels[i] = prepared(weights[i], kLayers[i], type);
      inputs[i + 1] =
          cuda_only::bias_relu_fold(ops::convolve(inputs[i], kernels[i]), biases[i], fold);
    }
    const Tensor& last = inputs[3];
    const int64_t channels = last.size(1), pixels = last.size(2) * last.size(3);
    const Tensor features = last.permute({0, 2, 3, 1}).reshape({last.size(0), -1});
    const Tensor product = reorder(weight4, channels, pixels).to(type);
    const Tensor y = at::tanh(at::addmm(bias4.to(type), features, product.t()).to(at::kFloat));
    context->save_for_backward({inputs[0], inputs[1], inputs[2], last, kernels[0], kernels[1],
                                kernels[2], product, y, weight1, weight2, weight3});
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("nature_encoder");
    const PlainDispatch guard;
    const auto saved = context->get_saved_variables();
    const Tensor &last = saved[3], &product = saved[7], &y = saved[8];
    const auto type = product.scalar_type();
    const int64_t channels = last.size(1), pixels = last.size(2) * last.size(3);
    const Tensor dz = at::tanh_backward(gradients[0].to(at::kFloat), y), dout = dz.to(type);
    const Tensor features = last.permute({0, 2, 3, 1}).reshape({last.size(0), -1});
    variable_list out(10);
    out[7] = reorder(weight_gradient(dout, features).to(at::kFloat), pixels, channels);
    out[8] = dz.sum(0);
    Tensor dlast = at::mm(dout, product)
                       .view({last.size(0), last.size(2), last.size(3), channels})
                       .permute({0, 3, 1, 2});
    for (size_t i = 3; i-- > 0;) {  // NOLINT(bugprone-infinite-loop): the condition counts
      const Tensor &input = saved[i], &activation = saved[i + 1], &weight = saved[9 + i];
      Tensor &dweight = out[1 + 2 * i], &dbias = out[2 + 2 * i];
      if (has_own_kernel(i, type)) {
        const Tensor sums =
            cuda_only::sum_parts(cuda_only::first_convolution_backward(dlast, activation, input));
        dweight = first_weight_gradient(sums.narrow(0, 0, weight.numel()), weight);
        dbias = sums.narrow(0, weight.numel(), weight.size(0));
        continue;
      }
      const int64_t fold = i < 2 ? kLayers[i + 1].fold : 1;
      const auto relu = cuda_only::bias_relu_unfold(dlast, activation, fold);
      dbias = cuda_only::sum_parts(relu.parts);
      const auto [dinput, dkernel] =
          ops::convolve_backward(relu.draw, input, saved[4 + i], /*wants_dx=*/i > 0);
      dweight = unfold_weight(dkernel.to(at::kFloat), weight, kLayers[i]);
      if (kLayers[i].pixels) dweight.div_(static_cast<double>(kPixelScale));
      dlast = dinput;
    }
    return out;
  }
};

}  // namespace

NatureEncoder::NatureEncoder(int64_t d_model) {
  using torch::nn::Conv2d;
  using torch::nn::Conv2dOptions;
  conv1_ = register_module("0", Conv2d(Conv2dOptions(kFrameStack, 32, 8).stride(4)));
  conv2_ = register_module("2", Conv2d(Conv2dOptions(32, 64, 4).stride(2)));
  conv3_ = register_module("4", Conv2d(Conv2dOptions(64, 64, 3)));
  linear_ = register_module("7", torch::nn::Linear(7 * 7 * 64, d_model));
}

bool NatureEncoder::folds(const Tensor& frames) const {
  return frames.is_cuda() && ops::built_with_cuda() && linear_->weight.scalar_type() == at::kFloat;
}

Tensor NatureEncoder::forward(const Tensor& stacks) {
  if (folds(stacks)) return forward_strips(stacks);  // a stack is the strip of one step
  const auto dtype = linear_->weight.scalar_type();
  const Tensor pixels = stacks.to(dtype) / static_cast<double>(kPixelScale);
  Tensor x = torch::relu(conv1_->forward(pixels));
  x = torch::relu(conv3_->forward(torch::relu(conv2_->forward(x))));
  return torch::tanh(linear_->forward(x.flatten(1)));
}

Tensor NatureEncoder::forward_strips(const Tensor& strips) {
  if (!folds(strips)) return FrameEncoder::forward_strips(strips);
  const auto type = product_type(linear_->weight);
  return Nature::apply(strips.contiguous(), conv1_->weight, conv1_->bias, conv2_->weight,
                       conv2_->bias, conv3_->weight, conv3_->bias, linear_->weight, linear_->bias,
                       type);
}

}  // namespace dmamba::nn
