// Frames on CUDA: drawing batches of them, and what stands between an encoder's convolutions.
#include <ATen/ATen.h>

#include "dmamba/data/frame_store.h"
#include "dmamba/nn/frame_encoder.h"
#include "kernels/frames/launch.h"
#include "kernels/game_embedding/launch.h"
#include "kernels/sampling/launch.h"
#include "src/ops/cuda/dropout_mask.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops::cuda_only {
namespace {

using cuda::Call;

static_assert(kernels::kFrameSide == data::kFrameSide && kernels::kFrameStack == data::kFrameStack);
static_assert(kernels::kFrameSide == nn::kFrameSide && kernels::kFrameStack == nn::kFrameStack);

Tensor innermost_channels(const Tensor& t) { return t.contiguous(at::MemoryFormat::ChannelsLast); }

Tensor empty_image(at::IntArrayRef sizes, const Tensor& like, at::ScalarType type) {
  return at::empty(sizes, like.options().dtype(type).memory_format(at::MemoryFormat::ChannelsLast));
}

Tensor empty_floats(at::IntArrayRef sizes, const Tensor& like) {
  return at::empty(sizes, like.options().dtype(at::kFloat));
}

kernels::GameTokens tokens_of(const GameInputs& in) {
  const auto floats = [](const Tensor& t) { return t.const_data_ptr<float>(); };
  return {in.states.size(0),
          in.states.size(1),
          in.states.size(2),
          floats(in.returns_to_go),
          floats(in.states),
          in.actions.const_data_ptr<int64_t>(),
          in.timesteps.const_data_ptr<int64_t>(),
          in.mask.defined() ? in.mask.const_data_ptr<bool>() : nullptr,
          floats(in.return_weight),
          floats(in.return_bias),
          floats(in.action_table),
          floats(in.local),
          floats(in.global),
          in.action_table.size(0),
          in.global.size(0),
          cuda::mask_of(in.dropout)};
}

}  // namespace

GameEmbedding game_embed(const GameInputs& in) {
  Call call("game_embed", in.states);
  const int64_t batch = in.states.size(0), tokens = 3 * in.states.size(1);
  GameEmbedding out;
  out.out = empty_floats({batch, tokens, in.states.size(2)}, in.states);
  if (in.mask.defined()) out.token_mask = at::empty({batch, tokens}, in.mask.options());
  call.check(kernels::launch_game_embedding(
      {tokens_of(in), out.out.mutable_data_ptr<float>(),
       in.mask.defined() ? out.token_mask.mutable_data_ptr<bool>() : nullptr},
      call.stream()));
  return out;
}

GameEmbeddingGradients game_embed_backward(const Tensor& dout, const GameInputs& in) {
  Call call("game_embed_backward", in.states);
  const int64_t width = in.states.size(2),
                blocks = kernels::game_blocks(in.states.size(0), in.states.size(1));
  const bool drops = in.dropout.key.defined() && in.dropout.p > 0.0;
  const Tensor dtokens = drops ? at::empty_like(dout) : dout;
  GameEmbeddingGradients out;
  out.dstates = at::empty_like(in.states);
  out.parts = empty_floats({blocks, in.action_table.size(0) + 2, width}, dout);
  out.dlocal = empty_floats(in.local.sizes(), dout);
  out.dglobal = at::zeros(in.global.sizes(), dout.options());
  call.check(kernels::launch_game_embedding_backward(
      {tokens_of(in), dout.const_data_ptr<float>(), dtokens.mutable_data_ptr<float>(),
       out.dstates.mutable_data_ptr<float>(), out.parts.mutable_data_ptr<float>(),
       out.dlocal.mutable_data_ptr<float>(), out.dglobal.mutable_data_ptr<float>(),
       in.local.size(0)},
      call.stream()));
  return out;
}

void draw_strips(const BeginStep& options, const StepState& state, const GameTensors& games,
                 const StripTensors& batch) {
  Call call("draw_strips", state.step);
  kernels::DrawStripsParams p{};
  p.step = state.step.const_data_ptr<int64_t>();
  p.seed = options.seed;
  p.first_sample = options.first_sample;
  p.data = {games.frames.const_data_ptr<uint8_t>(), games.actions.const_data_ptr<int32_t>(),
            games.returns_to_go.const_data_ptr<float>(), games.starts.const_data_ptr<int64_t>(),
            games.starts.numel() - 1};
  p.batch = {batch.strips.mutable_data_ptr<uint8_t>(),
             batch.actions.mutable_data_ptr<int64_t>(),
             batch.returns_to_go.mutable_data_ptr<float>(),
             batch.timesteps.mutable_data_ptr<int64_t>(),
             batch.mask.mutable_data_ptr<bool>(),
             batch.mask.size(0),
             batch.mask.size(1),
             options.max_timestep};
  call.check(kernels::launch_draw_strips(p, call.stream()));
}

Tensor fold_frames(const Tensor& strips, at::ScalarType type) {
  Call call("fold_frames", strips);
  constexpr int64_t kFold = kernels::kFrameFold, kSide = kernels::kFrameSide / kFold;
  const int64_t batch = strips.size(0), steps = strips.size(1) - (kernels::kFrameStack - 1);
  const Tensor out = empty_image(
      {batch * steps, kernels::kFrameStack * kFold * kFold, kSide, kSide}, strips, type);
  call.check(kernels::launch_fold_frames(
      {batch, steps, storage_of(out), strips.const_data_ptr<uint8_t>(), out.mutable_data_ptr()},
      call.stream()));
  return out;
}

Tensor bias_relu_fold(const Tensor& raw, const Tensor& bias, int64_t fold) {
  Call call("bias_relu_fold", raw);
  const Tensor input = innermost_channels(raw);
  const kernels::ReluSizes sizes{input.size(0), input.size(2), input.size(3),
                                 input.size(1), fold,          storage_of(input)};
  const Tensor out = empty_image(
      {sizes.images, fold * fold * sizes.channels, sizes.rows / fold, sizes.columns / fold}, raw,
      raw.scalar_type());
  call.check(kernels::launch_bias_relu(
      {sizes, input.const_data_ptr(), bias.const_data_ptr<float>(), out.mutable_data_ptr()},
      call.stream()));
  return out;
}

BiasReluGradients bias_relu_unfold(const Tensor& dout, const Tensor& out, int64_t fold) {
  Call call("bias_relu_unfold", out);
  const Tensor slopes = innermost_channels(dout), output = innermost_channels(out);
  const kernels::ReluSizes sizes{
      out.size(0), out.size(2) * fold, out.size(3) * fold, out.size(1) / (fold * fold),
      fold,        storage_of(out)};
  BiasReluGradients gradients;
  gradients.draw = empty_image({sizes.images, sizes.channels, sizes.rows, sizes.columns}, out,
                               out.scalar_type());
  gradients.parts = at::empty({kernels::relu_blocks(sizes), sizes.channels},
                              out.options().dtype(at::kFloat).memory_format(std::nullopt));
  call.check(kernels::launch_bias_relu_backward(
      {sizes, slopes.const_data_ptr(), output.const_data_ptr(), gradients.draw.mutable_data_ptr(),
       gradients.parts.mutable_data_ptr<float>()},
      call.stream()));
  return gradients;
}

Tensor first_convolution(const Tensor& strips, const Tensor& weight, const Tensor& bias) {
  Call call("first_convolution", strips);
  const int64_t batch = strips.size(0), steps = strips.size(1) - (kernels::kFrameStack - 1);
  const Tensor out = empty_image({batch * steps, 128, 10, 10}, strips, at::kBFloat16);
  call.check(kernels::launch_first_convolution(
      {batch, steps, strips.const_data_ptr<uint8_t>(), weight.const_data_ptr(),
       bias.const_data_ptr<float>(), out.mutable_data_ptr()},
      call.stream()));
  return out;
}

Tensor first_convolution_backward(const Tensor& dout, const Tensor& out, const Tensor& strips) {
  Call call("first_convolution_backward", strips);
  const int64_t batch = strips.size(0), steps = strips.size(1) - (kernels::kFrameStack - 1);
  const Tensor slopes = innermost_channels(dout), output = innermost_channels(out);
  const Tensor parts = empty_floats(
      {kernels::first_convolution_blocks(batch, steps), kernels::kFirstConvolutionSums}, strips);
  call.check(kernels::launch_first_convolution_backward(
      {batch, steps, strips.const_data_ptr<uint8_t>(), slopes.const_data_ptr(),
       output.const_data_ptr(), parts.mutable_data_ptr<float>()},
      call.stream()));
  return parts;
}

}  // namespace dmamba::ops::cuda_only
