// The token chain forward: out_proj, norm, channel mixer, norm and the next layer's in_proj in one
// launch; see params.h for the equations, chain.cuh for how a block works.
//
//   slots  inner / 128 of out_proj with as many columns of y; for each 128 hidden units one of the
//          first matrix and one of the second; next_width / 128 of in_proj
//
// Floor for d_model 128, a token: 5.6 KB read and written for a backward pass (1.4 us for 1000
// tokens), and 448 KB of weights a block from L2 (3.5 us at 64 bytes a clock and multiprocessor);
// 0.46 MFLOP (0.5 us for 1000 tokens at the full rate of the tensor cores).
#include "kernels/common/gelu.cuh"
#include "kernels/token_chain/chain.cuh"
#include "kernels/token_chain/launch.h"

namespace dmamba::kernels {
namespace {

using namespace chain;

/// GELU of the sums with their bias, and its slope.
__device__ __forceinline__ void activate(Sums& values, Sums& slopes, const Sums& sums, float bias,
                                         float eighth_bias) {
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 gelu = gelu_with_slope_for_bfloat16(sums[j][e] + (e < 2 ? bias : eighth_bias));
      values[j][e] = gelu.x;
      slopes[j][e] = gelu.y;
    }
  }
}

/// A norm's parameters for a lane.
struct NormRows {
  Row<1> weight, bias;
};

/// The warp's rows of the stream through a norm: to the tile, and to memory where they are wanted.
__device__ __forceinline__ void leave_normed(const TokenChainParams& p, int which,
                                             const NormRows& norm, Memory& memory,
                                             const Row<1> (&stream)[kRowsOfWarp], const Place& at,
                                             const Lane& lane) {
  constexpr int kCount = kRowsOfWarp;
  constexpr float kOne = 1.0F / static_cast<float>(kWidth);
  float means[kCount], squares[kCount];
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const float(&v)[kRowVector] = stream[r].v[0];
    means[r] = (v[0] + v[1]) + (v[2] + v[3]);
  }
  sum_warp(means);
#pragma unroll
  for (int r = 0; r < kCount; ++r) {  // in two passes, as the rows are there: no cancellation
    means[r] *= kOne;
    squares[r] = 0.0F;
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      const float centred = stream[r].v[0][e] - means[r];
      squares[r] = fmaf(centred, centred, squares[r]);
    }
  }
  sum_warp(squares);
  float* sums = p.sums[which] != nullptr ? rows_of_warp(p.sums[which], at) : nullptr;
  auto* normed = static_cast<bfloat16*>(p.normed[which]);
  if (normed != nullptr) normed = rows_of_warp(normed, at);
  float* statistics = p.statistics[which];
  if (statistics != nullptr) statistics += 2 * (at.first_row + at.row(0));
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const float rstd = rsqrtf(fmaf(squares[r], kOne, p.norms[which].epsilon));
    Row<1> out;
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      out.v[0][e] =
          fmaf((stream[r].v[0][e] - means[r]) * rstd, norm.weight.v[0][e], norm.bias.v[0][e]);
    }
    leave_row(memory, at.row(r), out, lane);
    if (at.row(r) >= at.rows) continue;
    if (sums != nullptr) store_row(sums + r * kWidth, stream[r], lane);
    if (statistics != nullptr && lane.lane == 0) {
      store_pack<float, 2>(statistics + 2 * r, {means[r], rstd});
    }
    if (normed != nullptr) store_row(normed + r * kWidth, out, lane);
  }
}

struct ForwardMaps {
  WeightMaps weights;
  CUtensorMap y, hidden, slope, next;
};

__global__ void __launch_bounds__(kThreads, 2)
    token_chain_kernel(const __grid_constant__ TokenChainParams p,
                       const __grid_constant__ ForwardMaps maps) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& memory = *dynamic_shared<Memory, 1024>();
  const Place at(p.rows);
  const Lane lane{at.lane, kWidth};
  const int slices = static_cast<int>(p.inner) / kChunk;
  const int chunks = static_cast<int>(p.hidden_width) / kChunk;
  const int last_chunks = static_cast<int>(p.next_width) / kChunk;
  auto pipeline =
      make_pipeline(memory, at, slices + 2 * chunks + last_chunks, [&](int step) -> Request {
        if (step < slices) {
          return {&maps.weights.out_proj, step * kChunk, 0, &maps.y, step * kChunk};
        }
        step -= slices;
        if (step >= 2 * chunks) {
          return {&maps.weights.in_proj, 0, (step - 2 * chunks) * kChunk, nullptr, 0};
        }
        const MixerStep mixer(step, chunks);
        if (mixer.first) return {&maps.weights.first, 0, mixer.chunk * kChunk, nullptr, 0};
        return {&maps.weights.second, mixer.chunk * kChunk, 0, nullptr, 0};
      });
  if (pipeline.leads()) {
    for (const CUtensorMap* map : {&maps.weights.out_proj, &maps.y, &maps.weights.first,
                                   &maps.weights.second, &maps.weights.in_proj}) {
      prefetch_map(*map);
    }
  }
  fetch_weights(p);
  wait_for_stream();
  pipeline.begin();

  NormRows norm = {load_row<1>(p.norms[0].weight, lane), load_row<1>(p.norms[0].bias, lane)};
  Row<1> stream[kRowsOfWarp];  // the warp's rows of the residual stream
  const float* residual = rows_of_warp(p.residual, at);
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    stream[r] = row_or_zero(residual + r * kWidth, at.row(r) < at.rows, lane);
  }
  uint32_t keep[kRowsOfWarp];
  const float scale = keep_rows(keep, p.dropout, at);
  const uint32_t tile = shared_address(memory.tile);
  {
    Sums sums;
    for (int i = 0; i < slices; ++i) {
      const int slot = pipeline.take();
      multiply<false>(sums, pipeline.slot(slot), pipeline.terms_of(slot), i > 0);
      wait_for_products<1>();
    }
    wait_for_products<0>(sums);
    leave_products(memory, sums, at);
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const Row<1> branch = take_products(memory, at.row(r), lane);
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) stream[r].v[0][e] += branch.v[0][e];
  }
  leave_normed(p, 0, norm, memory, stream, at, lane);

  Row<1> second_bias;
  {
    Sums mixed, next;
    const auto begin = [&] { multiply<false>(next, pipeline.slot(pipeline.take()), tile, false); };
    begin();
    wait_for_products<0>(next);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      // A chunk's GELU goes on beside the products of the next chunk's first matrix, and of the
      // second matrix with the chunk before.
      const int column = chunk * kChunk;
      const float bias = p.first_bias[column + at.output()];
      const float eighth_bias = p.first_bias[column + at.output() + 8];
      Sums hidden, slopes;
      copy(hidden, next);
      if (chunk + 1 < chunks) begin();
      activate(hidden, slopes, hidden, bias, eighth_bias);
      const uint32_t activations = shared_address(memory.hidden[chunk % 2]);
      const uint32_t slope_tile = pipeline.terms_of(chunk % 2);
      leave_rounded(activations, hidden, at);
      if (p.slope != nullptr) leave_rounded(slope_tile, slopes, at);
      wait_for_products<1>();
      multiply<false>(mixed, pipeline.slot(pipeline.take()), activations, chunk > 0);
      if (p.slope != nullptr && pipeline.leads()) {
        store_tile(maps.hidden, column, activations, at);
        store_tile(maps.slope, column, slope_tile, at);
        commit_stores();
      }
      __syncwarp();
      wait_for_products<1>(next);
    }
    norm = {load_row<1>(p.norms[1].weight, lane), load_row<1>(p.norms[1].bias, lane)};
    second_bias = load_row<1>(p.second_bias, lane);
    wait_for_products<0>(mixed);
    if (pipeline.leads()) wait_for_stores();
    __syncthreads();  // the products take the hidden layer's place
    leave_products(memory, mixed, at);
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    Row<1> branch = take_products(memory, at.row(r), lane);
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) branch.v[0][e] += second_bias.v[0][e];
    drop(branch, keep[r], scale);
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) stream[r].v[0][e] += branch.v[0][e];
  }
  leave_normed(p, 1, norm, memory, stream, at, lane);

  store_columns<false>(maps.next, last_chunks, pipeline, tile, at);
#endif
}

}  // namespace

cudaError_t launch_token_chain(const TokenChainParams& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  if (!token_chain_fits(p.rows, kChainWidth, p.inner, p.hidden_width, p.next_width)) {
    return cudaErrorInvalidValue;
  }
  ForwardMaps maps{};
  cudaError_t error =
      make_weight_maps(maps.weights, p.weights, p.inner, p.hidden_width, p.next_width);
  if (error == cudaSuccess) error = make_tensor_map(maps.y, p.y, p.rows, p.inner, kRows);
  if (error == cudaSuccess) {
    error = make_tensor_map(maps.hidden, p.hidden, p.rows, p.hidden_width, kRows);
  }
  if (error == cudaSuccess) {
    error = make_tensor_map(maps.slope, p.slope, p.rows, p.hidden_width, kRows);
  }
  if (error == cudaSuccess && p.weights.in_proj != nullptr) {
    error = make_tensor_map(maps.next, p.next, p.rows, p.next_width, kRows);
  }
  if (error != cudaSuccess) return error;
  return launch_blocks(token_chain_kernel, p, maps, stream);
}

}  // namespace dmamba::kernels
