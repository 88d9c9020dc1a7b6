// The causal convolution forward on tiles (tiles.cuh; the equation is forward.cu's). Floor: x read
// and y written once. Last inputs are left by the block that has them.
#include "kernels/causal_conv1d/tiles.cuh"
#include "kernels/common/launch.cuh"

namespace dmamba::kernels {
namespace {

template <class T>
struct ForwardTile {
  alignas(16) T x[(kTileMost<T> + kPairHalo) * kTileChannels];
  uint32_t live[kTileMost<T> + kPairHalo];
};

/// Writes the inputs that the next call's window begins with, of a sequence longer than they are.
template <class T>
__device__ __forceinline__ void leave_last(const CausalConv1dForwardParams& p,
                                           const ForwardTile<T>& tile, const TilePlace& at) {
#pragma unroll
  for (int h = 0; h < kPairHalo; ++h) {
    const int row = at.length + h - at.first;  // tokens length - 3 + h
    float v[2];
    load_pair(tile.x + row * kTileChannels + 2 * at.lane, tile.live[row], v);
    float* to = static_cast<float*>(p.last_state.data) + at.batch * p.last_state.batch_stride +
                at.channel * p.last_state.channel_stride + h * p.last_state.width_stride;
    to[0] = v[0];
    to[p.last_state.channel_stride] = v[1];
  }
}

template <class T>
__global__ void __launch_bounds__(kTileThreads, 4)
    conv_tiles_forward_kernel(const __grid_constant__ CausalConv1dForwardParams p,
                              const __grid_constant__ ConvTiles g) {
  __shared__ ForwardTile<T> tile;
  fetch_early(p.weight, int64_t{4} * kPairTaps * p.d_inner);
  wait_for_stream();
  const TilePlace at(p, g);
  const int rows = kTileWarps * g.stretch + kPairHalo;
  stage_tokens(tile.x, p.x, p, at, at.first - kPairHalo, rows);
  commit_copies();
  stage_mask(tile.live, p, at, at.first - kPairHalo, rows);
  const PairWeights weights(p.weight, p.bias, at.works ? at.channel : 0);
  wait_for_copies<0>();
  __syncthreads();
  if (!at.works) return;
  const int row = at.warp * g.stretch;
  const T* x = tile.x + row * kTileChannels + 2 * at.lane;
  const uint32_t* live = tile.live + row;
  auto* out = static_cast<T*>(p.out.data) + at.batch * p.out.batch_stride +
              at.begin * p.out.step_stride + at.channel;
  float window[kPairHalo][2];
#pragma unroll
  for (int h = 0; h < kPairHalo; ++h) load_pair(x + h * kTileChannels, live[h], window[h]);
  for (int step = 0; step < g.stretch; step += kTileUnroll) {
#pragma unroll
    for (int i = 0; i < kTileUnroll; ++i) {
      float v[2], y[2];
      load_pair(x + (step + i + kPairHalo) * kTileChannels, live[step + i + kPairHalo], v);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float a = weights.activation(c, window, v[c]);
        y[c] = a * sigmoid(a);
      }
      if (at.begin + step + i < at.length) store_pack<T, 2>(out, y);
      out += p.out.step_stride;
      move_window(window, v);
    }
  }
  const bool ends = at.begin + g.stretch >= at.length;
  if (ends && p.last_state.data != nullptr) leave_last(p, tile, at);
}

template <class T>
cudaError_t launch_storage(const CausalConv1dForwardParams& p, const ConvTiles& g,
                           cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(g.row_blocks * g.channel_blocks);
  return launch_early(conv_tiles_forward_kernel<T>, blocks, kTileThreads, 0, stream, p, g);
}

}  // namespace

cudaError_t launch_conv_tiles_forward(const CausalConv1dForwardParams& p, cudaStream_t stream) {
  const ConvTiles g = conv_tiles(p);
  if (int64_t{g.row_blocks} * g.channel_blocks > INT32_MAX) return cudaErrorInvalidValue;
  return p.storage == Storage::kBFloat16 ? launch_storage<bfloat16>(p, g, stream)
                                         : launch_storage<float>(p, g, stream);
}

}  // namespace dmamba::kernels
