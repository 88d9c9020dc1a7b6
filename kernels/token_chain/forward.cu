// The token chain forward: out_proj, norm, channel mixer, norm and the next layer's in_proj in one
// launch; see params.h for the equations, chain.cuh for how a block works.
//
//   slots  inner / 128 of out_proj with as many columns of y; for each 128 hidden units one of the
//          first matrix and one of the second; next_width / 128 of in_proj
//
// Floor for d_model 128, a token: 2.6 KB read and written for a backward pass (0.64 us for 1000
// tokens), and 448 KB of weights a block from L2 (3.5 us at 64 bytes a clock and multiprocessor);
// 0.46 MFLOP (0.5 us for 1000 tokens at the full rate of the tensor cores).
#include "kernels/common/gelu.cuh"
#include "kernels/token_chain/chain.cuh"
#include "kernels/token_chain/launch.h"

namespace dmamba::kernels {
namespace {

using namespace chain;

/// GELU of the sums with their bias, in their place, and its slope.
template <int kTiles>
__device__ __forceinline__ void activate(float (&sums)[kTiles][4], float (&slopes)[kTiles][4],
                                         const float* bias, int lane) {
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
    const float2 shift = *reinterpret_cast<const float2*>(bias + c * 8 + lane % 4 * 2);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 gelu =
          gelu_with_slope_for_bfloat16(sums[c][e] + (e % 2 == 0 ? shift.x : shift.y));
      sums[c][e] = gelu.x;
      slopes[c][e] = gelu.y;
    }
  }
}

/// A norm's output of a row: to the tile, and to memory where it is wanted.
template <int kRows>
__device__ __forceinline__ void leave_normed(const TokenChainParams& p, int which,
                                             Memory<kRows>& memory, const Row<1>& sum, int row,
                                             int64_t global_row, bool exists, const Lane& lane) {
  const ChainNorm& norm = p.norms[which];
  const RowStatistics s = statistics_of(sum, norm.epsilon, lane);
  const Row<1> normed = normalise(sum, s, norm.weight, norm.bias, lane);
  leave_row(memory, row, normed, lane);
  if (!exists) return;
  if (p.sums[which] != nullptr) store_row(p.sums[which] + global_row * kWidth, sum, lane);
  if (p.statistics[which] != nullptr && lane.lane == 0) {
    store_pack<float, 2>(p.statistics[which] + 2 * global_row, {s.mean, s.rstd});
  }
  if (p.normed[which] != nullptr) {
    store_row(static_cast<bfloat16*>(p.normed[which]) + global_row * kWidth, normed, lane);
  }
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    token_chain_kernel(const __grid_constant__ TokenChainParams p) {
  using S = Shape<kRows>;
  extern __shared__ __align__(128) unsigned char bytes[];
  auto& memory = *reinterpret_cast<Memory<kRows>*>(bytes);
  const Place<kRows> at(p.rows);
  const Lane lane{at.lane, kWidth};
  const int column = at.group * S::kTiles * 8;  // of a chunk, the group's first
  const int slices = static_cast<int>(p.inner) / kChunk;
  const int chunks = static_cast<int>(p.hidden_width) / kChunk;
  const int last_chunks = static_cast<int>(p.next_width) / kChunk;
  const auto* y = static_cast<const bfloat16*>(p.y) + at.first_row * p.inner;
  wait_for_stream();
  const Sender sender;
  auto pipeline = make_pipeline(
      memory, slices + 2 * chunks + last_chunks, [&](uint32_t slot, uint32_t terms, int step) {
        if (step < slices) {
          sender.send_columns(slot, p.weights.out_proj, p.inner, step);
          sender.send<kRows, true>(terms, y + step * kChunk, p.inner, at.rows);
        } else if (step < slices + 2 * chunks) {
          const int chunk = (step - slices) / 2;
          if ((step - slices) % 2 == 0) {
            sender.send_rows(slot, p.weights.first, chunk);
          } else {
            sender.send_columns(slot, p.weights.second, p.hidden_width, chunk);
          }
        } else {
          sender.send_rows(slot, p.weights.in_proj, step - slices - 2 * chunks);
        }
      });
  pipeline.begin();

  Row<1> stream[S::kRowsOfWarp];  // the warp's rows of the residual stream
#pragma unroll
  for (int r = 0; r < S::kRowsOfWarp; ++r) {
    stream[r] = row_or_zero(p.residual, at.first_row + at.row(r), at.row(r) < at.rows, lane);
  }
  const Columns<false, kRows> columns(at);
  const uint32_t tile = shared_address(memory.tile);
  {
    typename Columns<false, kRows>::Halves halves = {};
    for (int i = 0; i < slices; ++i) {
      const int slot = pipeline.take();
      columns.add(halves, pipeline.terms_of(slot), pipeline.slot(slot));
    }
    float sums[S::kTiles][4];
    columns.join(sums, halves);
    __syncthreads();  // the products take the terms' place
    leave_products(memory.products[0], sums, at.fragment_row(), column, at.lane);
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < S::kRowsOfWarp; ++r) {
    const int row = at.row(r);
    const Row<1> branch = take_products<1>(memory, row, lane);
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) stream[r].v[0][e] += branch.v[0][e];
    leave_normed(p, 0, memory, stream[r], row, at.first_row + row, row < at.rows, lane);
  }
  __syncthreads();

  {
    const Terms<false, kRows> by_terms(at);
    const float* bias = p.first_bias + column;
    FragmentPlace hidden_place(p.hidden, p.hidden_width, column, at);
    FragmentPlace slope_place(p.slope, p.hidden_width, column, at);
    float mixed[kWidth / 8][4] = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      float hidden[S::kTiles][4], slopes[S::kTiles][4];
      {
        typename Columns<false, kRows>::Halves halves = {};
        columns.add(halves, tile, pipeline.slot(pipeline.take()));
        columns.join(hidden, halves);
      }
      activate(hidden, slopes, bias, at.lane);
      bias += kChunk;
      uint32_t terms[S::kPairs][4];
#pragma unroll
      for (int k = 0; k < S::kPairs; ++k) {
        as_terms(terms[k], hidden[2 * k], hidden[2 * k + 1]);
        if (p.hidden != nullptr) {
          uint32_t words[4];
          as_terms(words, slopes[2 * k], slopes[2 * k + 1]);
          store_fragment(hidden_place, 16 * k, terms[k], at.lane);
          store_fragment(slope_place, 16 * k, words, at.lane);
        }
      }
      hidden_place.advance(kChunk);
      slope_place.advance(kChunk);
      by_terms.add(mixed, terms, pipeline.slot(pipeline.take()));
    }
    leave_parts(memory, mixed, at);
  }
  const Row<1> bias = load_row<1>(p.second_bias, lane);
  const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
#pragma unroll
  for (int r = 0; r < S::kRowsOfWarp; ++r) {
    const int row = at.row(r);
    Row<1> branch = take_products<S::kParts>(memory, row, lane);
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) branch.v[0][e] += bias.v[0][e];
    if (p.dropout.key != nullptr) apply_dropout(branch, p.dropout, key, at.first_row + row, lane);
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) stream[r].v[0][e] += branch.v[0][e];
    leave_normed(p, 1, memory, stream[r], row, at.first_row + row, row < at.rows, lane);
  }
  if (last_chunks == 0) return;
  __syncthreads();

  FragmentPlace next_place(p.next, p.next_width, column, at);
  for (int chunk = 0; chunk < last_chunks; ++chunk) {
    typename Columns<false, kRows>::Halves halves = {};
    columns.add(halves, tile, pipeline.slot(pipeline.take()));
    float sums[S::kTiles][4];
    columns.join(sums, halves);
#pragma unroll
    for (int k = 0; k < S::kPairs; ++k) {
      uint32_t words[4];
      as_terms(words, sums[2 * k], sums[2 * k + 1]);
      store_fragment(next_place, 16 * k, words, at.lane);
    }
    next_place.advance(kChunk);
  }
}

}  // namespace

cudaError_t launch_token_chain(const TokenChainParams& p, cudaStream_t stream) {
  if (!token_chain_fits(kChainWidth, p.inner, p.hidden_width, p.next_width)) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  return token_chain_block_rows(p.rows) == 32
             ? launch_blocks<32>(token_chain_kernel<32>, p, stream)
             : launch_blocks<64>(token_chain_kernel<64>, p, stream);
}

}  // namespace dmamba::kernels
