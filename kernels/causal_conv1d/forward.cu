// The causal depthwise convolution forward (Mamba: Gu and Dao, arXiv 2312.00752, section 3.4):
//
//   y_t = SiLU(bias + sum_k weight_k x_{t - (width - 1) + k})
//
// Bound by memory: x is read and y written once, 2 batch L d_inner elements; the floor is those
// bytes at the device's copy bandwidth. The halo of width - 1 tokens that a stretch shares with the
// one before comes from the caches. SiLU's two special-function operations an element take 0.6 of
// that time for bfloat16, beside it.
//
// A thread (walk.cuh) has the next tile of tokens in flight while it works on the last.
#include "kernels/causal_conv1d/tiles.cuh"
#include "kernels/causal_conv1d/walk.cuh"
#include "kernels/common/launch.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kLongest = 64;  // tokens of a stretch
constexpr int kOtherPack = 2;

template <class T>
constexpr int kUsualPack = 16 / sizeof(T);
/// With fewer elements than this, smaller packs in more threads hide more latency.
constexpr int kSmallPack = 4;
constexpr int64_t kManyElements = int64_t{1} << 22;

/// Tokens in flight: what 128 registers hold.
template <class Shape>
constexpr int kTileOf = Shape::kPack == 4 && !Shape::kFlags ? 8 : 4;

/// Blocks of a multiprocessor: flags beside eight channels need more than 128 registers a thread.
template <class Shape>
constexpr int kBlocksOf = Shape::kPack == 8 && Shape::kFlags ? 3 : 4;

template <class Shape>
class ConvForward {
 public:
  __device__ ConvForward(const CausalConv1dForwardParams& p, const ConvGrid& g, const ConvPlace& at)
      : p_(p), g_(g), at_(at), inputs_(p, at), out_(p.out, at), oldest_(p) {}

  __device__ void run() {
    fetch_tile(at_.begin);
    load_weight<Shape>(p_, at_, weight_);
    load_bias<Shape>(p_, at_, bias_);
    {
      float halo[kHalo][kPack];
      load_halo<Shape>(p_, at_, inputs_, g_.wide, oldest_, halo);
#pragma unroll
      for (int h = 0; h < kHalo; ++h) {
#pragma unroll
        for (int c = 0; c < kPack; ++c) v_[h][c] = halo[h][c];
      }
    }
    for (int step = at_.begin; step < at_.end; step += kTile) tile(step);
    if (p_.last_state.data != nullptr && at_.end == at_.length) leave();
  }

 private:
  using T = typename Shape::T;
  static constexpr int kPack = Shape::kPack, kWidth = Shape::kWidth, kHalo = Shape::kHalo;
  static constexpr int kTile = kTileOf<Shape>;

  __device__ __forceinline__ void fetch_tile(int step) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      next_[i].fetch_from(inputs_, i, step + i < at_.length, at_.left, g_.wide);
    }
  }

  __device__ __forceinline__ void tile(int step) {
    uint8_t starts[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      next_[i].get(v_[kHalo + i]);
      starts[i] = next_[i].start;
    }
    // A branch keeps the loads here; unconditional ones would move down to where they are needed.
    if (step + kTile < at_.end) {
      inputs_.move(kTile);
      fetch_tile(step + kTile);
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      oldest_.pass(starts[i]);
      float y[kPack];
#pragma unroll
      for (int c = 0; c < kPack; ++c) y[c] = bias_[c];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        if (!oldest_.holds(k)) continue;
#pragma unroll
        for (int c = 0; c < kPack; ++c) y[c] = fmaf(weight_[k][c], v_[i + k][c], y[c]);
      }
      if (Shape::kUsual || p_.silu) {
#pragma unroll
        for (int c = 0; c < kPack; ++c) y[c] *= sigmoid(y[c]);
      }
      store_some<T, kPack>(out_.row(i), y, step + i < at_.end ? at_.left : 0,
                           Shape::kUsual || g_.wide);
    }
    out_.move(kTile);
#pragma unroll
    for (int h = 0; h < kHalo; ++h) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) v_[h][c] = v_[kTile + h][c];
    }
  }

  /// The inputs that the next call's window begins with. All are read before the first is written:
  /// they may lie where the initial state lies.
  __device__ void leave() {
    const int length = at_.length, width = Shape::width(p_);
    const ConvInputs<Shape> inputs(p_, at_);
    float last[kHalo][kPack];
#pragma unroll
    for (int h = 0; h < kHalo; ++h) {
      const int t = length - kHalo + h;
      ConvToken<Shape> token;
      token.fetch_from(inputs, t - at_.begin, t >= 0, at_.left, g_.wide);
      token.get(last[h]);
      const bool reaches = !Shape::kFlags || reaches_end(p_, at_, t);
      const int index = t + width - 1;  // in the initial state
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        if (t < 0 && index >= 0 && c < at_.left && p_.initial_state.data != nullptr) {
          last[h][c] = *conv_state(p_.initial_state, at_, c, index);
        }
        if (!reaches) last[h][c] = 0.0F;
      }
    }
#pragma unroll
    for (int h = 0; h < kHalo; ++h) {
      const int index = h - kHalo + width - 1;
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        if (index >= 0 && c < at_.left) *conv_state(p_.last_state, at_, c, index) = last[h][c];
      }
    }
  }

  const CausalConv1dForwardParams& p_;
  const ConvGrid& g_;
  const ConvPlace& at_;
  ConvInputs<Shape> inputs_;
  ConvRows<T> out_;
  OldestSlot<Shape> oldest_;
  float weight_[kWidth][kPack], bias_[kPack];
  float v_[kHalo + kTile][kPack];
  ConvToken<Shape> next_[kTile];
};

template <class Shape>
__global__ void __launch_bounds__(kConvThreads, kBlocksOf<Shape>)
    causal_conv1d_forward_kernel(const __grid_constant__ CausalConv1dForwardParams p,
                                 const __grid_constant__ ConvGrid g) {
  wait_for_stream();
  const ConvPlace at = ConvPlace::of<Shape>(p, g);
  if (at.left > 0) ConvForward<Shape>(p, g, at).run();
}

template <class Shape>
cudaError_t launch_shape(const CausalConv1dForwardParams& p, bool wide, cudaStream_t stream) {
  // A state that is replaced where it lies is read and written by one thread: one stretch.
  const bool in_place = p.last_state.data != nullptr && p.last_state.data == p.initial_state.data;
  const int length = static_cast<int>(p.length);
  ConvGrid g = conv_grid(p, Shape::kPack, kTileOf<Shape>, 0, kLongest);
  if (in_place && g.n_stretches > 1) {
    g.stretch = length;
    g.n_stretches = 1;
    g.rows = static_cast<int>(p.batch);
    const int block_rows = kConvThreads >> g.log_lanes;
    g.row_blocks = (g.rows + block_rows - 1) / block_rows;
  }
  g.wide = wide;
  const int64_t blocks = int64_t{g.row_blocks} * g.pack_blocks;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return launch_early(causal_conv1d_forward_kernel<Shape>, static_cast<unsigned>(blocks),
                      kConvThreads, 0, stream, p, g);
}

/// The usual shape: four taps, SiLU, wide rows.
template <class T, int kPack>
cudaError_t launch_usual(const CausalConv1dForwardParams& p, cudaStream_t stream) {
  return p.mask.data == nullptr && p.segment_starts.data == nullptr
             ? launch_shape<ConvShape<T, kPack, 4, true, false>>(p, true, stream)
             : launch_shape<ConvShape<T, kPack, 4, true, true>>(p, true, stream);
}

template <class T>
cudaError_t launch_storage(const CausalConv1dForwardParams& p, cudaStream_t stream) {
  const auto wide = [&](int pack) {
    return conv_rows_are_wide(p, p.x, pack) && conv_rows_are_wide(p, p.out, pack);
  };
  constexpr int kPack = kUsualPack<T>;
  if (conv_weight_is_wide(p) && p.silu && wide(kPack)) {
    if (kPack > kSmallPack && p.batch * p.length * p.d_inner < kManyElements) {
      return launch_usual<T, kSmallPack>(p, stream);
    }
    return launch_usual<T, kPack>(p, stream);
  }
  return launch_shape<ConvShape<T, kOtherPack, kConvMaxWidth, false, true>>(p, wide(kOtherPack),
                                                                            stream);
}

}  // namespace

cudaError_t launch_causal_conv1d_forward(const CausalConv1dForwardParams& p, cudaStream_t stream) {
  if (!conv_sizes_are_valid(p)) return cudaErrorInvalidValue;
  if (p.batch == 0 || p.d_inner == 0) return cudaSuccess;
  if (conv_tiles_fit(p) && conv_rows_are_wide(p, p.out, 2)) {
    return launch_conv_tiles_forward(p, stream);
  }
  return p.storage == Storage::kBFloat16 ? launch_storage<bfloat16>(p, stream)
                                         : launch_storage<float>(p, stream);
}

}  // namespace dmamba::kernels
