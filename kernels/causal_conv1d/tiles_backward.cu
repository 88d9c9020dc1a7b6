// The causal convolution backward on tiles (tiles.cuh; the equations are backward.cu's). Floor: x
// and dout read and dx written once, (width + 1) floats a channel and tile.
//
// The gradients of a stretch's last inputs take d of the three tokens behind it. Those the next
// warp has computed, as its first; the tile's last warp computes them again from the halo.
#include "kernels/causal_conv1d/tiles.cuh"
#include "kernels/common/launch.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kSums = kPairTaps + 1;  // the taps' and the bias's

template <class T>
struct BackwardTile {
  alignas(16) T x[(kTileMost<T> + 2 * kPairHalo) * kTileChannels];
  alignas(16) T dout[(kTileMost<T> + kPairHalo) * kTileChannels];
  float2 heads[kTileWarps][kPairHalo][32];  // d of a stretch's first tokens
  float sums[kTileWarps][kSums][kTileChannels];
  uint32_t live[kTileMost<T> + 2 * kPairHalo];
};

template <class T>
class TileWalk {
 public:
  __device__ __forceinline__ TileWalk(const CausalConv1dBackwardParams& p, const ConvTiles& g,
                                      BackwardTile<T>& tile, const TilePlace& at,
                                      const PairWeights& weights)
      : at_(at),
        weights_(weights),
        x_(tile.x + (at.warp * g.stretch + kPairHalo) * kTileChannels + 2 * at.lane),
        dout_(tile.dout + at.warp * g.stretch * kTileChannels + 2 * at.lane),
        live_(tile.live + at.warp * g.stretch + kPairHalo),
        dx_(static_cast<T*>(p.dx.data) + at.batch * p.dx.batch_stride +
            (at.begin - kPairHalo) * p.dx.step_stride + at.channel),
        stride_(p.dx.step_stride) {
#pragma unroll
    for (int h = 0; h < kPairHalo; ++h) {
      load_pair(x_ + (h - kPairHalo) * kTileChannels, live_[h - kPairHalo], window_[h]);
    }
  }

  /// The stretch's own tokens.
  __device__ __forceinline__ void own(int stretch, float2 (&heads)[kPairHalo][32],
                                      float (&sums)[kSums][2]) {
    for (int step = 0; step < stretch; step += kTileUnroll) {
#pragma unroll
      for (int i = 0; i < kTileUnroll; ++i) {
        float v[2], d[2];
        derivative(step + i, v, d);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
          for (int k = 0; k < kPairHalo; ++k) sums[k][c] = fmaf(d[c], window_[k][c], sums[k][c]);
          sums[kPairHalo][c] = fmaf(d[c], v[c], sums[kPairHalo][c]);
          sums[kPairTaps][c] += d[c];
        }
        move_window(window_, v);
        // What ends here before the stretch's fourth token is of the stretch before.
        const bool first = step == 0 && i < kPairHalo;
        if (first) heads[i % kPairHalo][at_.lane] = make_float2(d[0], d[1]);
        pass(step + i, d, !first);
      }
    }
  }

  /// The tokens behind it: their d from the next warp, or computed where there is none.
  __device__ __forceinline__ void behind(int stretch, const float2 (*heads)[32]) {
#pragma unroll
    for (int i = 0; i < kPairHalo; ++i) {
      float d[2];
      if (heads != nullptr) {
        const float2 head = heads[i][at_.lane];
        d[0] = head.x, d[1] = head.y;
      } else {
        float v[2];
        derivative(stretch + i, v, d);
        move_window(window_, v);
      }
      pass(stretch + i, d, true);
    }
  }

 private:
  /// d of token `step`, and its input. Behind the sequence dout is zero.
  __device__ __forceinline__ void derivative(int step, float (&v)[2], float (&d)[2]) const {
    load_pair(x_ + step * kTileChannels, live_[step], v);
    load_pack<T, 2>(dout_ + step * kTileChannels, d);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float a = weights_.activation(c, window_, v[c]), s = sigmoid(a);
      d[c] *= s * fmaf(a, 1.0F - s, 1.0F);
    }
  }

  /// Adds what a token gives to the inputs in its window, the oldest of which is then finished.
  __device__ __forceinline__ void pass(int step, const float (&d)[2], bool mine) {
    float dx[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      dx[c] = fmaf(d[c], weights_.tap[c][0], unfinished_[0][c]);
#pragma unroll
      for (int k = 1; k < kPairHalo; ++k) {
        unfinished_[k - 1][c] = fmaf(d[c], weights_.tap[c][k], unfinished_[k][c]);
      }
      unfinished_[kPairHalo - 1][c] = d[c] * weights_.tap[c][kPairHalo];
    }
    if (mine && at_.begin + step - kPairHalo < at_.length) {
      const uint32_t live = live_[step - kPairHalo];
#pragma unroll
      for (int c = 0; c < 2; ++c) dx[c] = __uint_as_float(__float_as_uint(dx[c]) & live);
      store_pack<T, 2>(dx_, dx);
    }
    dx_ += stride_;
  }

  const TilePlace& at_;
  const PairWeights& weights_;
  const T *x_, *dout_;
  const uint32_t* live_;
  T* dx_;  // kPairHalo tokens behind
  const int64_t stride_;
  float window_[kPairHalo][2];
  float unfinished_[kPairHalo][2] = {};  // gradients of the window's inputs
};

template <class T>
__global__ void __launch_bounds__(kTileThreads, 4)
    conv_tiles_backward_kernel(const __grid_constant__ CausalConv1dBackwardParams p,
                               const __grid_constant__ ConvTiles g, float* __restrict__ partial) {
  __shared__ BackwardTile<T> tile;
  wait_for_stream();
  const TilePlace at(p, g);
  const int tokens = kTileWarps * g.stretch;
  stage_tokens(tile.x, p.x, p, at, at.first - kPairHalo, tokens + 2 * kPairHalo);
  stage_tokens(tile.dout, p.dout, p, at, at.first, tokens + kPairHalo);
  commit_copies();
  stage_mask(tile.live, p, at, at.first - kPairHalo, tokens + 2 * kPairHalo);
  const PairWeights weights(p.weight, p.bias, at.works ? at.channel : 0);
  wait_for_copies<0>();
  __syncthreads();
  TileWalk<T> walk(p, g, tile, at, weights);
  float sums[kSums][2] = {};
  if (at.works) {
    walk.own(g.stretch, tile.heads[at.warp], sums);
  } else {
#pragma unroll
    for (int i = 0; i < kPairHalo; ++i) tile.heads[at.warp][i][at.lane] = make_float2(0.0F, 0.0F);
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    *reinterpret_cast<float2*>(&tile.sums[at.warp][k][2 * at.lane]) =
        make_float2(sums[k][0], sums[k][1]);
  }
  __syncthreads();
  if (at.works) {
    walk.behind(g.stretch, at.warp + 1 < kTileWarps ? tile.heads[at.warp + 1] : nullptr);
  }
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kSums * kTileChannels; i += kTileThreads) {
    const int k = i / kTileChannels, channel = at.first_channel + i % kTileChannels;
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < kTileWarps; ++w) sum += tile.sums[w][k][i % kTileChannels];
    if (channel < p.d_inner) {
      partial[(int64_t{at.row_block} * kSums + k) * p.d_inner + channel] = sum;
    }
  }
}

template <class T>
cudaError_t launch_storage(const CausalConv1dBackwardParams& p, const ConvTiles& g, float* partial,
                           cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(g.row_blocks * g.channel_blocks);
  return launch_early(conv_tiles_backward_kernel<T>, blocks, kTileThreads, 0, stream, p, g,
                      partial);
}

}  // namespace

cudaError_t launch_conv_tiles_backward(const CausalConv1dBackwardParams& p, float* partial,
                                       cudaStream_t stream) {
  const ConvTiles g = conv_tiles(p);
  if (int64_t{g.row_blocks} * g.channel_blocks > INT32_MAX) return cudaErrorInvalidValue;
  return p.storage == Storage::kBFloat16 ? launch_storage<bfloat16>(p, g, partial, stream)
                                         : launch_storage<float>(p, g, partial, stream);
}

}  // namespace dmamba::kernels
