// The gradients of the first convolution's weight and bias, straight from the folded gradients and
// activations: ReLU, unfolding and both sums in one launch. Nothing flows back into the frames.
//
// Work as in the forward pass, and 51 KB a stack to read, which takes longer; two blocks a
// multiprocessor, one of which loads while the other multiplies. Of the products dy^T x a warp has
// one frame's 64 columns, all 32 channels: 64 sums a lane, which stay in registers over all of the
// block's work and are left in parts. The number of blocks is a constant, so the sums have one
// order on any device.
#include "kernels/common/launch.cuh"
#include "kernels/frames/first_convolution.cuh"

namespace dmamba::kernels {
namespace {

constexpr int kWarps = kFrameStack, kThreads = kWarps * 32;
constexpr int kRowTiles = kOutChannels / 16, kColumnTiles = 8;  // a frame's
constexpr int kPacks = kOutChannels / 8;                        // of 8 channels, 16 bytes

struct Shared {
  FrameRing ring;
  bfloat16 slopes[kPixels][kPacks][8];  // packs swizzled, see pack_at
};

/// Where a pack of a pixel lies: eight neighbouring pixels' packs fall into different banks.
__device__ __forceinline__ int pack_at(int pixel, int pack) { return pack ^ (pixel / 2 % kPacks); }

/// An image's gradients and activations on their way to shared memory, all at once. A thread always
/// has the same pack of channels.
class SlopesInFlight {
 public:
  __device__ __forceinline__ void fetch(const bfloat16* dout, const bfloat16* out) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int i = static_cast<int>(threadIdx.x) + n * kThreads, count = i < kPackCount ? 8 : 0;
      slopes_[n] = kernels::fetch<8, true>(dout + i * 8, count, true);
      values_[n] = kernels::fetch<8, true>(out + i * 8, count, true);
    }
  }

  /// Behind the ReLU; adds up this thread's channels.
  __device__ __forceinline__ void store(Shared& shared, float (&bias_sums)[8]) const {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int i = static_cast<int>(threadIdx.x) + n * kThreads;
      if (i >= kPackCount) break;
      float slope[8], value[8];
      slopes_[n].get(slope);
      values_[n].get(value);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        slope[e] = relu_gradient(value[e], slope[e]);
        bias_sums[e] += slope[e];
      }
      const int folded = i / kPacks, square = folded / 4, y = square / (kOutSide / 2);
      const int x = square - y * (kOutSide / 2);
      const int pixel = (2 * y + folded % 4 / 2) * kOutSide + 2 * x + folded % 2;
      store_pack<bfloat16, 8>(&shared.slopes[pixel][pack_at(pixel, i % kPacks)][0], slope);
    }
  }

 private:
  static constexpr int kPackCount = kPixels * kPacks;
  static constexpr int kCount = (kPackCount + kThreads - 1) / kThreads;
  Pack<bfloat16, 8> slopes_[kCount], values_[kCount];
};

/// sums += dy^T x over the image's pixels, for the frame of this warp.
__device__ __forceinline__ void multiply(const Shared& shared, int slot, int lane,
                                         float (&sums)[kRowTiles][kColumnTiles][4]) {
  for (int tile = 0; tile < kTiles; ++tile) {
    const int first = tile * kTileRows;
    // dy^T (channels x pixels) from (pixels x channels): tiles (channels 0-7, 8-15) x (pixels 0-7,
    // 8-15), transposed.
    uint32_t slopes[kRowTiles][4];
    const int pixel = first + lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      load_tiles_transposed(slopes[r],
                            &shared.slopes[pixel][pack_at(pixel, 2 * r + lane / 8 % 2)][0]);
    }
    // x (pixels x 16) of a window: (pixels 0-7, 8-15) x (upper, lower half), transposed.
    const int square = square_of(first + lane % 16);
    const bfloat16* frame = &shared.ring.pixels[slot][lane / 16][square][0];
    uint32_t pixels[4][4];
#pragma unroll
    for (int window = 0; window < 4; ++window) {
      load_tiles_transposed(pixels[window], frame + (window / 2 * kSquares + window % 2) * 8);
    }
#pragma unroll
    for (int window = 0; window < 4; ++window) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        multiply_add(sums[r][2 * window], slopes[r], pixels[window][0], pixels[window][1]);
        multiply_add(sums[r][2 * window + 1], slopes[r], pixels[window][2], pixels[window][3]);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    first_convolution_backward_kernel(const __grid_constant__ FirstConvolutionGradients p,
                                      int64_t chunks) {
  Shared& shared = *dynamic_shared<Shared>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float sums[kRowTiles][kColumnTiles][4] = {};
  float bias_sums[8] = {};
  FrameInFlight<kThreads> next;
  for (int64_t index = blockIdx.x; index < chunks; index += gridDim.x) {
    const Chunk chunk = chunk_of(p.strips, p.steps, index);
    __syncthreads();
    begin_chunk(chunk.frames, shared.ring, next);
    for (int step = 0; step < chunk.steps; ++step) {
      const int newest = step + kFrameStack - 1;
      const int64_t at = (chunk.image + step) * kPixels * kOutChannels;
      SlopesInFlight slopes;
      slopes.fetch(static_cast<const bfloat16*>(p.dout) + at,
                   static_cast<const bfloat16*>(p.out) + at);
      next.store(shared.ring.pixels[newest % kFrameStack]);
      slopes.store(shared, bias_sums);
      if (step + 1 < chunk.steps) next.fetch(chunk.frames + (newest + 1) * kFrameBytes);
      __syncthreads();
      multiply(shared, (step + warp) % kFrameStack, lane, sums);
      __syncthreads();
    }
  }
  // (32, 256) of the weight, then (32,) of the bias.
  float* parts = p.parts + int64_t{blockIdx.x} * kFirstConvolutionSums;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const int row = r * 16 + lane / 4, column = warp * 64 + n * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(parts + row * 256 + column) = {sums[r][n][0], sums[r][n][1]};
      *reinterpret_cast<float2*>(parts + (row + 8) * 256 + column) = {sums[r][n][2], sums[r][n][3]};
    }
  }
  float* columns = dynamic_shared<float>();  // (threads, 8)
#pragma unroll
  for (int e = 0; e < 8; ++e) columns[threadIdx.x * 8 + e] = bias_sums[e];
  __syncthreads();
  if (threadIdx.x < kOutChannels) {
    const int pack = static_cast<int>(threadIdx.x) / 8, e = static_cast<int>(threadIdx.x) % 8;
    float sum = 0.0F;
    for (int t = pack; t < kThreads; t += kPacks) sum += columns[t * 8 + e];
    parts[kOutChannels * 256 + threadIdx.x] = sum;
  }
}

}  // namespace

int64_t first_convolution_blocks(int64_t batch, int64_t steps) {
  const int64_t chunks = batch * ((steps + kChunkSteps - 1) / kChunkSteps);
  return chunks < kFirstConvolutionBlocks ? chunks : kFirstConvolutionBlocks;
}

cudaError_t launch_first_convolution_backward(const FirstConvolutionGradients& p,
                                              cudaStream_t stream) {
  const int64_t chunks = p.batch * ((p.steps + kChunkSteps - 1) / kChunkSteps);
  if (chunks == 0) return cudaSuccess;
  return launch_kernel(first_convolution_backward_kernel,
                       static_cast<unsigned>(first_convolution_blocks(p.batch, p.steps)), kThreads,
                       sizeof(Shared), stream, p, chunks);
}

}  // namespace dmamba::kernels
