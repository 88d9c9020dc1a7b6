// What the convolution's two directions share: how a problem is cut into threads, and how a thread
// reads its weights, inputs and flags.
//
// A thread owns kPack neighbouring channels and walks along a stretch of tokens. The window of a
// token has kWidth slots, the present input in the last; slots below `oldest` lie before the
// segment's start (or, where the width is less than kWidth, do not exist) and take no part.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/causal_conv1d/launch.h"
#include "kernels/common/alignment.h"
#include "kernels/common/math.cuh"
#include "kernels/common/storage.cuh"

namespace dmamba::kernels {

constexpr int kConvThreads = 128;  // of a block

/// A kernel's compiled shape. kUsual: the width is kWidth, SiLU, a channel's weights are
/// contiguous, memory is aligned for wide accesses; otherwise a width up to kWidth, and the rest
/// decided at run time. kFlags: there may be flags.
template <class T_, int kPack_, int kWidth_, bool kUsual_, bool kFlags_>
struct ConvShape {
  using T = T_;
  static constexpr int kPack = kPack_;
  static constexpr int kWidth = kWidth_;
  static constexpr bool kUsual = kUsual_;
  static constexpr bool kFlags = kFlags_;
  static constexpr int kHalo = kWidth - 1;

  static __device__ __forceinline__ int width(const CausalConv1dParams& p) {
    return kUsual ? kWidth : static_cast<int>(p.width);
  }

  static_assert(kUsual || kFlags, "run-time widths go through `oldest`, as flags do");
};

/// A block has `lanes` packs of channels and kConvThreads / lanes rows; a row is a stretch of one
/// sequence. Blocks go over (row blocks, pack blocks), the latter fastest.
struct ConvGrid {
  int log_lanes, packs, pack_blocks;
  int stretch, n_stretches;  // tokens; of a sequence
  int rows, row_blocks;      // rows: batch n_stretches
  bool wide;                 // whether memory allows one access a pack
};

/// Threads that fill the device: 132 multiprocessors, 4 blocks each. A constant, since the cut
/// decides the order of sums: the same sizes give the same bits on every device.
constexpr int64_t kConvFill = int64_t{132} * 4 * kConvThreads;

/// `stretch + halo` is a multiple of `tile`; a sequence is cut into more than one stretch only
/// until the device is full, or where stretches would be longer than `longest` (late blocks fill
/// gaps).
inline ConvGrid conv_grid(const CausalConv1dParams& p, int pack, int tile, int halo, int longest) {
  ConvGrid g{};
  g.packs = static_cast<int>((p.d_inner + pack - 1) / pack);
  while (g.log_lanes < 5 && (1 << g.log_lanes) < g.packs) ++g.log_lanes;
  g.pack_blocks = (g.packs + (1 << g.log_lanes) - 1) >> g.log_lanes;
  const int64_t wanted = std::max<int64_t>(1, kConvFill / (p.batch * g.packs));
  // At least kConvMaxWidth - 1, so that only the first stretch looks beyond the sequence's
  // beginning.
  const int64_t tokens = std::clamp<int64_t>((p.length + wanted - 1) / wanted, kConvMaxWidth - 1,
                                             std::max<int64_t>(longest, kConvMaxWidth - 1));
  g.stretch = static_cast<int>((tokens + halo + tile - 1) / tile * tile - halo);
  g.n_stretches = static_cast<int>((p.length + g.stretch - 1) / g.stretch);
  const int64_t rows = p.batch * g.n_stretches, block_rows = kConvThreads >> g.log_lanes;
  g.rows = static_cast<int>(rows);
  g.row_blocks = static_cast<int>((rows + block_rows - 1) / block_rows);
  return g;
}

inline bool conv_sizes_are_valid(const CausalConv1dParams& p) {
  return p.width >= 1 && p.width <= kConvMaxWidth && p.length >= 1 &&
         p.storage != Storage::kFloat64 && p.length < (int64_t{1} << 30) &&
         p.batch * ((p.length + 6) / 7) < (int64_t{1} << 31);
}

/// Whether `pack` neighbouring channels of every token can be one access.
inline bool conv_rows_are_wide(const CausalConv1dParams& p, const Sequence& s, int64_t pack) {
  return p.d_inner % pack == 0 && rows_aligned(s, pack, storage_bytes(p.storage));
}

inline bool conv_weight_is_wide(const CausalConv1dParams& p) {
  return p.width == 4 && p.weight_tap_stride == 1 && p.weight_channel_stride == 4 &&
         aligned(p.weight, 16);
}

/// The thread's piece: tokens [begin, end) of a sequence, and `left` channels from `channel` on.
struct ConvPlace {
  int lane, row;  // in the block
  int64_t batch;
  int channel, left;  // left <= 0: nothing to do
  int begin, end, length;

  template <class Shape>
  static __device__ __forceinline__ ConvPlace of(const CausalConv1dParams& p, const ConvGrid& g) {
    ConvPlace at;
    at.lane = static_cast<int>(threadIdx.x) & ((1 << g.log_lanes) - 1);
    at.row = static_cast<int>(threadIdx.x) >> g.log_lanes;
    const unsigned row_block = blockIdx.x / static_cast<unsigned>(g.pack_blocks);
    const unsigned pack_block = blockIdx.x - row_block * static_cast<unsigned>(g.pack_blocks);
    const unsigned row = row_block * static_cast<unsigned>(kConvThreads >> g.log_lanes) +
                         static_cast<unsigned>(at.row);
    const unsigned batch = row / static_cast<unsigned>(g.n_stretches);
    at.batch = batch;
    at.channel = (static_cast<int>(pack_block << g.log_lanes) + at.lane) * Shape::kPack;
    at.left = row < static_cast<unsigned>(g.rows) ? static_cast<int>(p.d_inner) - at.channel : 0;
    at.begin = static_cast<int>(row - batch * static_cast<unsigned>(g.n_stretches)) * g.stretch;
    at.length = static_cast<int>(p.length);
    at.end = min(at.begin + g.stretch, at.length);
    return at;
  }
};

/// Walks over the tokens of a sequence, from the stretch's first; rows outside the sequence must
/// not be accessed.
template <class T>
class ConvRows {
 public:
  __device__ __forceinline__ ConvRows(const Sequence& s, const ConvPlace& at)
      : at_(static_cast<T*>(s.data) + at.batch * s.batch_stride + at.begin * s.step_stride +
            at.channel),
        stride_(s.step_stride) {}
  __device__ __forceinline__ T* row(int ahead) const { return at_ + ahead * stride_; }
  __device__ __forceinline__ void move(int tokens) { at_ += tokens * stride_; }

 private:
  T* at_;
  const int64_t stride_;
};

__device__ __forceinline__ float* conv_state(const StateView& s, const ConvPlace& at, int c,
                                             int index) {
  return static_cast<float*>(s.data) + at.batch * s.batch_stride +
         (at.channel + c) * s.channel_stride + index * s.width_stride;
}

/// weight[k][c], the last tap in the last slot; zero where there is none.
template <class Shape>
__device__ __forceinline__ void load_weight(const CausalConv1dParams& p, const ConvPlace& at,
                                            float (&weight)[Shape::kWidth][Shape::kPack]) {
  const float* from = static_cast<const float*>(p.weight) + at.channel * p.weight_channel_stride;
  const int first = Shape::kWidth - Shape::width(p);
#pragma unroll
  for (int c = 0; c < Shape::kPack; ++c) {
    if constexpr (Shape::kUsual) {
      float taps[Shape::kWidth];
      load_pack<float, Shape::kWidth>(from + Shape::kWidth * c, taps);
#pragma unroll
      for (int k = 0; k < Shape::kWidth; ++k) weight[k][c] = taps[k];
    } else {
#pragma unroll
      for (int k = 0; k < Shape::kWidth; ++k) {
        const bool there = c < at.left && k >= first;
        weight[k][c] =
            there ? from[c * p.weight_channel_stride + (k - first) * p.weight_tap_stride] : 0.0F;
      }
    }
  }
}

template <class Shape>
__device__ __forceinline__ void load_bias(const CausalConv1dParams& p, const ConvPlace& at,
                                          float (&bias)[Shape::kPack]) {
  const float* from = static_cast<const float*>(p.bias);
#pragma unroll
  for (int c = 0; c < Shape::kPack; ++c) {
    bias[c] = from != nullptr && c < at.left ? from[at.channel + c] : 0.0F;
  }
}

/// x and the flags, walked together.
template <class Shape>
class ConvInputs {
 public:
  __device__ __forceinline__ ConvInputs(const CausalConv1dParams& p, const ConvPlace& at)
      : x_(p.x, at), mask_(flags(p, at, p.mask)), starts_(flags(p, at, p.segment_starts)) {}
  __device__ __forceinline__ const typename Shape::T* x(int ahead) const { return x_.row(ahead); }
  __device__ __forceinline__ uint8_t mask(int ahead) const { return flag(mask_, ahead, 1); }
  __device__ __forceinline__ uint8_t start(int ahead) const { return flag(starts_, ahead, 0); }
  __device__ __forceinline__ void move(int tokens) {
    x_.move(tokens);
    if (mask_ != nullptr) mask_ += tokens;
    if (starts_ != nullptr) starts_ += tokens;
  }

 private:
  static __device__ __forceinline__ const uint8_t* flags(const CausalConv1dParams& p,
                                                         const ConvPlace& at, const Flags& f) {
    if (!Shape::kFlags || f.data == nullptr) return nullptr;
    return reinterpret_cast<const uint8_t*>(f.data) + at.batch * p.length + at.begin;
  }
  static __device__ __forceinline__ uint8_t flag(const uint8_t* from, int ahead, uint8_t absent) {
    return from != nullptr ? from[ahead] : absent;
  }

  ConvRows<const typename Shape::T> x_;
  const uint8_t *mask_, *starts_;
};

/// A token's input and flags as they arrive, so that nothing waits for them when they are fetched.
template <class Shape>
struct ConvToken {
  Pack<typename Shape::T, Shape::kPack> x;
  uint8_t live, start;

  /// Outside the sequence: a live zero that starts nothing.
  __device__ __forceinline__ void fetch_from(const ConvInputs<Shape>& inputs, int ahead,
                                             bool inside, int left, bool wide) {
    x = fetch<Shape::kPack, Shape::kUsual>(inputs.x(ahead), inside ? left : 0, wide);
    live = Shape::kFlags && inside ? inputs.mask(ahead) : 1;
    start = Shape::kFlags && inside ? inputs.start(ahead) : 0;
  }
  __device__ __forceinline__ void get(float (&v)[Shape::kPack]) const {
    x.get(v);
    if constexpr (Shape::kFlags) {
#pragma unroll
      for (int c = 0; c < Shape::kPack; ++c) v[c] = live != 0 ? v[c] : 0.0F;
    }
  }
};

/// The first slot that belongs to the present token's segment, token by token.
template <class Shape>
class OldestSlot {
 public:
  __device__ explicit OldestSlot(const CausalConv1dParams& p)
      : first_(Shape::kWidth - Shape::width(p)), value_(first_) {}
  __device__ __forceinline__ void pass(uint8_t start) {
    if constexpr (Shape::kFlags) {
      value_ = start != 0 ? Shape::kWidth - 1 : max(value_ - 1, first_);
    }
  }
  __device__ __forceinline__ bool holds(int slot) const { return !Shape::kFlags || slot >= value_; }

 private:
  int first_, value_;
};

/// The inputs of the kHalo tokens before the stretch: of the initial state before the sequence.
/// Threads never come here with a stretch that begins after token 0 and before token kHalo.
template <class Shape>
__device__ __forceinline__ void load_halo(const CausalConv1dParams& p, const ConvPlace& at,
                                          const ConvInputs<Shape>& inputs, bool wide,
                                          OldestSlot<Shape>& oldest,
                                          float (&v)[Shape::kHalo][Shape::kPack]) {
  ConvToken<Shape> tokens[Shape::kHalo];
#pragma unroll
  for (int h = 0; h < Shape::kHalo; ++h) {
    tokens[h].fetch_from(inputs, h - Shape::kHalo, at.begin > 0, at.left, wide);
  }
#pragma unroll
  for (int h = 0; h < Shape::kHalo; ++h) {
    tokens[h].get(v[h]);
    oldest.pass(tokens[h].start);
  }
  if (at.begin > 0 || p.initial_state.data == nullptr) return;
#pragma unroll
  for (int h = 0; h < Shape::kHalo; ++h) {
    const int index = h - Shape::kHalo + Shape::width(p) - 1;
#pragma unroll
    for (int c = 0; c < Shape::kPack; ++c) {
      if (index >= 0 && c < at.left) v[h][c] = *conv_state(p.initial_state, at, c, index);
    }
  }
}

/// Whether no segment starts after token t (which may lie before the sequence) up to its end.
__device__ __forceinline__ bool reaches_end(const CausalConv1dParams& p, const ConvPlace& at,
                                            int t) {
  if (p.segment_starts.data == nullptr) return true;
  for (int i = max(t + 1, 0); i < at.length; ++i) {
    if (p.segment_starts.data[at.batch * p.length + i]) return false;
  }
  return true;
}

}  // namespace dmamba::kernels
