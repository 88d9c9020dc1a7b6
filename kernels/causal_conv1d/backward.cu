// The causal depthwise convolution backward. With a_t the pre-activation, recomputed from x:
//
//   d_t = dout_t SiLU'(a_t),   dx_i = sum_k weight_k d_{i + (width - 1) - k},
//   dweight_k = sum_t d_t x_{t - (width - 1) + k},   dbias = sum_t d_t
//
// (sums over t run over the batch too; pairs in different segments take no part; dx is zero where
// the mask is false; dx of inputs before the sequence is dinitial_state).
//
// Bound by memory: x and dout are read and dx written once, 3 batch L d_inner elements; the floor
// is those bytes at the device's copy bandwidth. In bfloat16 the
// arithmetic, some 35 instructions an element, takes nearly as long beside it. The partial sums are
// (width + 1) floats a channel and row block.
//
// A thread (walk.cuh) walks its stretch and the width - 1 tokens behind it, which reach back into
// it; those add to dx alone. A block leaves one partial sum a channel, a second launch adds them
// up; both in a fixed order.
#include "kernels/causal_conv1d/sums.cuh"
#include "kernels/causal_conv1d/tiles.cuh"
#include "kernels/causal_conv1d/walk.cuh"
#include "kernels/common/launch.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kLongest = 61;   // tokens of a stretch
constexpr int kUsualPack = 4;  // of either type: eight channels' sums would not fit in registers
constexpr int kOtherPack = 2;  // nor four with eight taps
constexpr int kGridTile = 4;   // a multiple of any tile

/// Tokens in flight.
template <class Shape>
constexpr int kTileOf = sizeof(Pack<typename Shape::T, Shape::kPack>) == 16 ? 2 : 4;

/// Blocks of a multiprocessor: with flags, 128 registers a thread would be too few.
template <class Shape>
constexpr int kBlocksOf = Shape::kFlags ? 3 : 4;

/// d SiLU(x) / dx = s (1 + x (1 - s)), s = sigmoid(x).
__device__ __forceinline__ float silu_derivative(float x) {
  const float s = sigmoid(x);
  return s * fmaf(x, 1.0F - s, 1.0F);
}

template <class Shape>
class ConvBackward {
 public:
  __device__ ConvBackward(const CausalConv1dBackwardParams& p, const ConvGrid& g,
                          const ConvPlace& at)
      : p_(p), g_(g), at_(at), inputs_(p, at), dout_(p.dout, at), dx_out_(p.dx, at), oldest_(p) {}

  /// dweight[k], then dbias, of the stretch.
  __device__ void run(float (&sums)[Shape::kWidth + 1][Shape::kPack]) {
    fetch_tile(at_.begin);
    load_weight<Shape>(p_, at_, weight_);
    load_bias<Shape>(p_, at_, bias_);
    load_halo<Shape>(p_, at_, inputs_, g_.wide, oldest_, window_);
    dx_out_.move(-kHalo);
    for (int step = at_.begin; step < at_.end + kHalo; step += kTile) tile(step, sums);
  }

 private:
  using T = typename Shape::T;
  static constexpr int kPack = Shape::kPack, kWidth = Shape::kWidth, kHalo = Shape::kHalo;
  static constexpr int kTile = kTileOf<Shape>;
  static_assert(kGridTile % kTile == 0);

  __device__ __forceinline__ void fetch_tile(int step) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const bool inside = step + i < at_.length;
      next_[i].fetch_from(inputs_, i, inside, at_.left, g_.wide);
      dout_next_[i] = fetch<kPack, Shape::kUsual>(dout_.row(i), inside ? at_.left : 0, g_.wide);
    }
  }

  __device__ __forceinline__ void tile(int step, float (&sums)[kWidth + 1][kPack]) {
    float v[kHalo + kTile][kPack], dout[kTile][kPack], dx[kTile][kPack];
    uint8_t starts[kTile];
#pragma unroll
    for (int h = 0; h < kHalo; ++h) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) v[h][c] = window_[h][c];
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      next_[i].get(v[kHalo + i]);
      dout_next_[i].get(dout[i]);
      starts[i] = next_[i].start;
      live_ = live_ << 1 | (next_[i].live != 0 ? 1U : 0U);
    }
    // A branch keeps the loads here; unconditional ones would move down to where they are needed.
    if (step + kTile < at_.end + kHalo) {
      inputs_.move(kTile);
      dout_.move(kTile);
      fetch_tile(step + kTile);
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      oldest_.pass(starts[i]);
      float d[kPack];
      derivative(reinterpret_cast<const float(&)[kWidth][kPack]>(v[i]), dout[i], d);
      add(reinterpret_cast<const float(&)[kWidth][kPack]>(v[i]), d, step + i < at_.end, dx[i],
          sums);
    }
#pragma unroll
    for (int h = 0; h < kHalo; ++h) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) window_[h][c] = v[kTile + h][c];
    }
    finish(step - kHalo, dx);
  }

  /// d of the token whose window is v. Behind the sequence it is zero, as dout is there, or NaN
  /// where the last token's d is NaN, whose window and gradients include all that are reached from
  /// there.
  __device__ __forceinline__ void derivative(const float (&v)[kWidth][kPack],
                                             const float (&dout)[kPack], float (&d)[kPack]) const {
    if (!Shape::kUsual && !p_.silu) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) d[c] = dout[c];
      return;
    }
    float a[kPack];
#pragma unroll
    for (int c = 0; c < kPack; ++c) a[c] = bias_[c];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (!oldest_.holds(k)) continue;
#pragma unroll
      for (int c = 0; c < kPack; ++c) a[c] = fmaf(weight_[k][c], v[k][c], a[c]);
    }
#pragma unroll
    for (int c = 0; c < kPack; ++c) d[c] = dout[c] * silu_derivative(a[c]);
  }

  /// Adds what a token gives to the inputs in its window (the oldest of them is then finished and
  /// leaves as dx) and, where the token is `own`, to the sums.
  __device__ __forceinline__ void add(const float (&v)[kWidth][kPack], const float (&d)[kPack],
                                      bool own, float (&dx)[kPack],
                                      float (&sums)[kWidth + 1][kPack]) {
#pragma unroll
    for (int c = 0; c < kPack; ++c) dx_[kHalo][c] = 0.0F;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (!oldest_.holds(k)) continue;
#pragma unroll
      for (int c = 0; c < kPack; ++c) dx_[k][c] = fmaf(d[c], weight_[k][c], dx_[k][c]);
      if (!own) continue;
#pragma unroll
      for (int c = 0; c < kPack; ++c) sums[k][c] = fmaf(d[c], v[k][c], sums[k][c]);
    }
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      if (own) sums[kWidth][c] += d[c];
      dx[c] = dx_[0][c];
    }
#pragma unroll
    for (int k = 0; k < kHalo; ++k) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) dx_[k][c] = dx_[k + 1][c];
    }
  }

  /// Stores the gradients of the inputs of tokens [t, t + kTile). The inputs before the stretch are
  /// incomplete here, unless they are the initial state's.
  __device__ __forceinline__ void finish(int t, float (&dx)[kTile][kPack]) {
    const int length = at_.length, width = Shape::width(p_);
    if (p_.dlast_state.data != nullptr && t + kTile > length - (width - 1)) add_last(t, dx);
    if (p_.dinitial_state.data != nullptr && t < 0) store_initial(t, dx);
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      if constexpr (Shape::kFlags) {
        const bool live = (live_ >> (kHalo + kTile - 1 - i) & 1U) != 0;
#pragma unroll
        for (int c = 0; c < kPack; ++c) dx[i][c] = live ? dx[i][c] : 0.0F;
      }
      const bool mine = t + i >= at_.begin && t + i < at_.end;
      store_some<T, kPack>(dx_out_.row(i), dx[i], mine ? at_.left : 0, Shape::kUsual || g_.wide);
    }
    dx_out_.move(kTile);
  }

  __device__ void add_last(int t, float (&dx)[kTile][kPack]) const {
    const int length = at_.length, width = Shape::width(p_);
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const int index = t + i - (length - (width - 1));
      if (index < 0 || t + i >= length) continue;
      if (Shape::kFlags && !reaches_end(p_, at_, t + i)) continue;
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        if (c < at_.left) dx[i][c] += *conv_state(p_.dlast_state, at_, c, index);
      }
    }
  }

  __device__ void store_initial(int t, const float (&dx)[kTile][kPack]) const {
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const int index = t + i + Shape::width(p_) - 1;
      if (at_.begin > 0 || t + i >= 0 || index < 0) continue;
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        if (c < at_.left) *conv_state(p_.dinitial_state, at_, c, index) = dx[i][c];
      }
    }
  }

  const CausalConv1dBackwardParams& p_;
  const ConvGrid& g_;
  const ConvPlace& at_;
  ConvInputs<Shape> inputs_;
  ConvRows<const T> dout_;
  ConvRows<T> dx_out_;  // kHalo tokens behind
  OldestSlot<Shape> oldest_;
  uint32_t live_ = 0;  // the masks of the last tokens, the present one lowest
  float weight_[kWidth][kPack], bias_[kPack];
  float window_[kHalo][kPack];    // the inputs before the tile
  float dx_[kWidth][kPack] = {};  // unfinished gradients of the window's inputs
  ConvToken<Shape> next_[kTile];
  Pack<T, kPack> dout_next_[kTile];
};

template <class Shape>
__global__ void __launch_bounds__(kConvThreads, kBlocksOf<Shape>)
    causal_conv1d_backward_kernel(const __grid_constant__ CausalConv1dBackwardParams p,
                                  const __grid_constant__ ConvGrid g, float* partial) {
  wait_for_stream();
  const ConvPlace at = ConvPlace::of<Shape>(p, g);
  float sums[Shape::kWidth + 1][Shape::kPack] = {};
  if (at.left > 0) ConvBackward<Shape>(p, g, at).run(sums);
  sum_rows<Shape>(p, g, at, sums, partial);
}

template <class Shape>
ConvGrid grid_of(const CausalConv1dParams& p) {
  return conv_grid(p, Shape::kPack, kGridTile, Shape::kHalo, kLongest);
}

template <class Shape>
cudaError_t launch_shape(const CausalConv1dBackwardParams& p, bool wide, float* partial,
                         cudaStream_t stream) {
  ConvGrid g = grid_of<Shape>(p);
  g.wide = wide;
  const int64_t blocks = int64_t{g.row_blocks} * g.pack_blocks;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return launch_early(causal_conv1d_backward_kernel<Shape>, static_cast<unsigned>(blocks),
                      kConvThreads, 0, stream, p, g, partial);
}

bool rows_are_wide(const CausalConv1dBackwardParams& p, int pack) {
  return conv_rows_are_wide(p, p.x, pack) && conv_rows_are_wide(p, p.dout, pack) &&
         conv_rows_are_wide(p, p.dx, pack);
}

bool is_usual(const CausalConv1dBackwardParams& p) {
  return conv_weight_is_wide(p) && p.silu && rows_are_wide(p, kUsualPack);
}

/// The kernel on tiles takes it.
bool has_tiles(const CausalConv1dBackwardParams& p) {
  return conv_tiles_fit(p) && p.dlast_state.data == nullptr && p.dinitial_state.data == nullptr &&
         conv_rows_are_wide(p, p.dout, 16 / storage_bytes(p.storage)) &&
         conv_rows_are_wide(p, p.dx, 2);
}

template <class T>
using UsualShape = ConvShape<T, kUsualPack, 4, true, true>;
template <class T>
using OtherShape = ConvShape<T, kOtherPack, kConvMaxWidth, false, true>;

template <class T>
cudaError_t launch_storage(const CausalConv1dBackwardParams& p, float* partial,
                           cudaStream_t stream) {
  if (!is_usual(p)) {
    return launch_shape<OtherShape<T>>(p, rows_are_wide(p, kOtherPack), partial, stream);
  }
  return p.mask.data == nullptr && p.segment_starts.data == nullptr
             ? launch_shape<ConvShape<T, kUsualPack, 4, true, false>>(p, true, partial, stream)
             : launch_shape<UsualShape<T>>(p, true, partial, stream);
}

}  // namespace

size_t causal_conv1d_backward_workspace(const CausalConv1dParams& p) {
  if (!conv_sizes_are_valid(p) || p.batch == 0 || p.d_inner == 0) return 0;
  // Of any kernel: which one it will be depends on addresses too.
  const int64_t row_blocks =
      std::max({grid_of<UsualShape<float>>(p).row_blocks, grid_of<OtherShape<float>>(p).row_blocks,
                p.length >= kTileShortest ? conv_tiles(p).row_blocks : 0});
  const int64_t floats = row_blocks * (p.width + 1) * p.d_inner;
  return static_cast<size_t>((floats + 63) / 64 * 64) * sizeof(float);
}

cudaError_t launch_causal_conv1d_backward(const CausalConv1dBackwardParams& p, void* workspace,
                                          cudaStream_t stream) {
  if (!conv_sizes_are_valid(p)) return cudaErrorInvalidValue;
  if (p.batch == 0 || p.d_inner == 0) return cudaSuccess;
  float* const partial = static_cast<float*>(workspace);
  if (has_tiles(p)) return launch_conv_tiles_backward(p, partial, stream);
  return p.storage == Storage::kBFloat16 ? launch_storage<bfloat16>(p, partial, stream)
                                         : launch_storage<float>(p, partial, stream);
}

cudaError_t launch_causal_conv1d_backward_sums(const CausalConv1dBackwardParams& p,
                                               const CausalConv1dGradients& gradients,
                                               const void* workspace, cudaStream_t stream) {
  if (!conv_sizes_are_valid(p)) return cudaErrorInvalidValue;
  if (p.batch == 0 || p.d_inner == 0) return cudaSuccess;
  const int row_blocks = has_tiles(p)  ? conv_tiles(p).row_blocks
                         : is_usual(p) ? grid_of<UsualShape<float>>(p).row_blocks
                                       : grid_of<OtherShape<float>>(p).row_blocks;
  return launch_conv_sums({static_cast<const float*>(workspace), row_blocks, p.d_inner, p.width},
                          gradients, stream);
}

}  // namespace dmamba::kernels
