// Parameters of the launches between an image encoder's convolutions. Free of torch and of CUDA.
//
// Images are (n, rows, columns, channels), channels innermost. Folding squares of f x f pixels into
// the channels makes (n, rows / f, columns / f, f f channels): the pixel in the square first, then
// the channel.
#pragma once

#include <cstdint>

#include "kernels/common/types.h"

namespace dmamba::kernels {

constexpr int kFrameSide = 84, kFrameStack = 4, kFrameFold = 4;

/// Strips to folded stacks: out[b K + t, y, x, (f 4 + dy) 4 + dx] = strips[b, t + f, 4 y + dy, 4 x
/// + dx], 0 to 255.
struct FoldFramesParams {
  int64_t batch, steps;   // steps = K
  Storage storage;        // of out
  const uint8_t* strips;  // (batch, K + 3, 84, 84)
  void* out;              // (batch K, 21, 21, 64)
};

/// Sizes of an image before folding; channels are a multiple of 8.
struct ReluSizes {
  int64_t images, rows, columns, channels, fold;
  Storage storage;
};

/// out = fold(relu(raw + bias)).
struct BiasReluParams {
  ReluSizes sizes;
  const void* raw;    // (images, rows, columns, channels)
  const float* bias;  // (channels,)
  void* out;          // folded
};

/// draw = unfold(out > 0 ? dout : 0), and the sums of draw over all but the channels.
struct BiasReluGradients {
  ReluSizes sizes;
  const void* dout;  // folded
  const void* out;   // folded
  void* draw;        // (images, rows, columns, channels)
  float* parts;      // (relu_blocks(sizes), channels): sums to be added up
};

/// The first convolution, 32 x 8 x 8 / 4 over stacks of bytes, with bias, ReLU and folding by 2,
/// in bfloat16 with float32 sums: out[b K + t] = fold(relu(conv(stack t of strip b) + bias)).
struct FirstConvolutionParams {
  int64_t batch, steps;   // steps = K
  const uint8_t* strips;  // (batch, K + 3, 84, 84)
  /// (32, 4, 2, 2, 4, 4): channel; frame; row and column of the window's square; pixel in it.
  const void* weight;
  const float* bias;  // (32,)
  void* out;          // (batch K, 10, 10, 128)
};

constexpr int64_t kFirstConvolutionBlocks = 264;  // two a multiprocessor of the largest devices
constexpr int64_t kFirstConvolutionSums = 32 * 256 + 32;

struct FirstConvolutionGradients {
  int64_t batch, steps;
  const uint8_t* strips;
  const void* dout;  // as out
  const void* out;
  float* parts;  // (first_convolution_blocks, 8224): weight, bias; sums to be added up
};

}  // namespace dmamba::kernels
