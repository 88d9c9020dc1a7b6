// The token chain backward: the gradients of activations and of the residual stream in one launch,
// back through in_proj, norm, channel mixer, norm and out_proj; see params.h, chain.cuh.
//
//   slots  next_width / 128 of in_proj with as many columns of dnext; for each 128 hidden units one
//          of the second matrix and one of the first; inner / 128 of out_proj
//
// The weights are read as they stand: a slot that was a column's terms is now a term's columns.
#include "kernels/token_chain/chain.cuh"
#include "kernels/token_chain/launch.h"

namespace dmamba::kernels {
namespace {

using namespace chain;

/// What a row of the residual stream was before its norm.
struct SavedRow {
  Row<1> sum;
  RowStatistics statistics;
};

/// The warp's.
__device__ __forceinline__ void load_saved(SavedRow (&saved)[kRowsOfWarp],
                                           const TokenChainBackwardParams& p, int which,
                                           const Place& at, const Lane& lane) {
  const float* sums = rows_of_warp(p.sums[which], at);
  const float* statistics = p.statistics[which] + 2 * (at.first_row + at.row(0));
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    saved[r] = {row_or_zero(sums + r * kWidth, at.row(r) < at.rows, lane), {0.0F, 0.0F}};
    if (at.row(r) < at.rows) {
      float s[2];
      load_pack<float, 2>(statistics + 2 * r, s);
      saved[r].statistics = {s[0], s[1]};
    }
  }
}

__device__ __forceinline__ void add(Row<1>& to, const Row<1>& other) {
#pragma unroll
  for (int e = 0; e < kRowVector; ++e) to.v[0][e] += other.v[0][e];
}

/// Adds to the stream's gradients those of the warp's rows before a norm, given those after it; and
/// to the column sums of the norm's weight and bias. See norm_gradients() in row.cuh.
template <int kCount>
__device__ __forceinline__ void add_norm_gradients(Row<1> (&stream)[kCount],
                                                   const Row<1> (&dnormed)[kCount],
                                                   const SavedRow (&saved)[kCount],
                                                   const Row<1>& weight, Row<1>& dweight,
                                                   Row<1>& dbias) {
  constexpr float kOne = 1.0F / static_cast<float>(kWidth);
  const auto normalised = [&](int r, int e) {
    return (saved[r].sum.v[0][e] - saved[r].statistics.mean) * saved[r].statistics.rstd;
  };
  float sums[2 * kCount] = {};  // of the scaled gradients, of their products with the row
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      const float scaled = dnormed[r].v[0][e] * weight.v[0][e];
      sums[2 * r] += scaled;
      sums[2 * r + 1] = fmaf(scaled, normalised(r, e), sums[2 * r + 1]);
      dweight.v[0][e] = fmaf(dnormed[r].v[0][e], normalised(r, e), dweight.v[0][e]);
      dbias.v[0][e] += dnormed[r].v[0][e];
    }
  }
  sum_warp(sums);
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) {
      const float scaled = dnormed[r].v[0][e] * weight.v[0][e];
      const float centred =
          scaled - sums[2 * r] * kOne - normalised(r, e) * (sums[2 * r + 1] * kOne);
      stream[r].v[0][e] = fmaf(saved[r].statistics.rstd, centred, stream[r].v[0][e]);
    }
  }
}

/// The words of a matrix in shared memory that lie where a lane's sums do.
using Words = uint32_t[kRows / 16][4];

__device__ __forceinline__ void load_words(Words& words, uint32_t matrix, const Place& at) {
  const int token = at.lane / 16 * 8 + at.lane % 8, pack = at.outputs() / kPack + at.lane / 8 % 2;
  const uint32_t from = matrix + pack_at(token, pack);
#pragma unroll
  for (int j = 0; j < kRows / 16; ++j) load_tiles_transposed(words[j], from + j * 16 * 128);
}

__device__ __forceinline__ void multiply_by(Sums& sums, const Words& words) {
#pragma unroll
  for (int j = 0; j < kRows / 16; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* pair = &sums[2 * j + i / 2][i % 2 * 2];
      pair[0] *= __uint_as_float(words[j][i] << 16);
      pair[1] *= __uint_as_float(words[j][i] & 0xFFFF0000U);
    }
  }
}

/// The sums over the tokens of the lane's two outputs, by one lane of four to `to`.
__device__ __forceinline__ void store_token_sums(float* to, const Sums& sums, const Place& at) {
  float two[2] = {};
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) two[e / 2] += sums[j][e];
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    two[i] += __shfl_xor_sync(~0U, two[i], 1);
    two[i] += __shfl_xor_sync(~0U, two[i], 2);
  }
  if (at.lane % 4 == 0) {
    to[at.output()] = two[0];
    to[at.output() + 8] = two[1];
  }
}

struct BackwardMaps {
  WeightMaps weights;
  CUtensorMap dnext, slope, dhidden, dy;
};

__global__ void __launch_bounds__(kThreads, 2)
    token_chain_backward_kernel(const __grid_constant__ TokenChainBackwardParams p,
                                const __grid_constant__ BackwardMaps maps) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& memory = *dynamic_shared<Memory, 1024>();
  const Place at(p.rows);
  const Lane lane{at.lane, kWidth};
  const int slices = p.weights.in_proj != nullptr ? static_cast<int>(p.next_width) / kChunk : 0;
  const int chunks = static_cast<int>(p.hidden_width) / kChunk;
  const int last_chunks = static_cast<int>(p.inner) / kChunk;
  float* parts = p.parts + int64_t{blockIdx.x} * (kChainColumns + p.hidden_width);
  auto pipeline =
      make_pipeline(memory, at, slices + 2 * chunks + last_chunks, [&](int step) -> Request {
        if (step < slices) {
          return {&maps.weights.in_proj, 0, step * kChunk, &maps.dnext, step * kChunk};
        }
        step -= slices;
        if (step >= 2 * chunks) {
          return {&maps.weights.out_proj, (step - 2 * chunks) * kChunk, 0, nullptr, 0};
        }
        const MixerStep mixer(step, chunks);
        const int column = mixer.chunk * kChunk;
        if (mixer.first) return {&maps.weights.second, column, 0, &maps.slope, column};
        return {&maps.weights.first, 0, column, nullptr, 0};
      });
  if (pipeline.leads()) {
    for (const CUtensorMap* map : {&maps.weights.in_proj, &maps.dnext, &maps.weights.second,
                                   &maps.slope, &maps.weights.first, &maps.weights.out_proj}) {
      prefetch_map(*map);
    }
  }
  fetch_weights(p);
  wait_for_stream();
  pipeline.begin();

  const Row<1> norm_weights[2] = {load_row<1>(p.norm_weights[0], lane),
                                  load_row<1>(p.norm_weights[1], lane)};
  uint32_t keep[kRowsOfWarp];
  const float scale = keep_rows(keep, p.dropout, at);
  const uint32_t tile = shared_address(memory.tile);
  Row<1> stream[kRowsOfWarp];  // gradients of the warp's rows of the residual stream
  {
    SavedRow saved[kRowsOfWarp];
    load_saved(saved, p, 1, at, lane);
    if (p.dsum != nullptr) {
      const float* dsum = rows_of_warp(p.dsum, at);
#pragma unroll
      for (int r = 0; r < kRowsOfWarp; ++r) {
        stream[r] = row_or_zero(dsum + r * kWidth, at.row(r) < at.rows, lane);
      }
    } else {
#pragma unroll
      for (int r = 0; r < kRowsOfWarp; ++r) stream[r] = {};
    }
    if (slices > 0) {
      Sums sums;
      for (int i = 0; i < slices; ++i) {
        const int slot = pipeline.take();
        multiply<true>(sums, pipeline.slot(slot), pipeline.terms_of(slot), i > 0);
        wait_for_products<1>();
      }
      wait_for_products<0>(sums);
      leave_products(memory, sums, at);
      __syncthreads();
    }
    const bfloat16* dnext = rows_of_warp(static_cast<const bfloat16*>(p.dnext), at);
    bfloat16* dbranch = rows_of_warp(static_cast<bfloat16*>(p.dbranch[1]), at);
    Row<1> dnormed[kRowsOfWarp];
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      dnormed[r] = slices > 0 ? take_products(memory, at.row(r), lane)
                              : row_or_zero(dnext + r * kWidth, at.row(r) < at.rows, lane);
    }
    Row<1> sums[3] = {};
    add_norm_gradients(stream, dnormed, saved, norm_weights[1], sums[0], sums[1]);
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      Row<1> branch = stream[r];
      drop(branch, keep[r], scale);
      add(sums[2], branch);
      leave_row(memory, at.row(r), branch, lane);
      if (at.row(r) < at.rows) store_row(dbranch + r * kWidth, branch, lane);
    }
    leave_column_sums<kWarps>(memory.warp_columns, sums, 3, parts, lane);
  }

  {
    SavedRow saved[kRowsOfWarp];
    load_saved(saved, p, 0, at, lane);
    Sums products, next;
    int slot = 0;  // of the chunk whose product is on its way
    const auto begin = [&] {
      slot = pipeline.take();
      multiply<true>(next, pipeline.slot(slot), tile, false);
    };
    begin();
    wait_for_products<0>(next);
    for (int chunk = 0; chunk < chunks; ++chunk) {  // which overlap as in the forward pass
      Sums hidden;
      copy(hidden, next);
      Words slopes;
      load_words(slopes, pipeline.terms_of(slot), at);  // whose place is taken soon
      if (chunk + 1 < chunks) begin();
      multiply_by(hidden, slopes);
      const uint32_t gradients = shared_address(memory.hidden[chunk % 2]);
      leave_rounded(gradients, hidden, at);
      wait_for_products<1>();
      multiply<true>(products, pipeline.slot(pipeline.take()), gradients, chunk > 0);
      if (pipeline.leads()) {
        store_tile(maps.dhidden, chunk * kChunk, gradients, at);
        commit_stores();
      }
      __syncwarp();
      store_token_sums(parts + kChainColumns + chunk * kChunk, hidden, at);
      wait_for_products<1>(next);
    }
    wait_for_products<0>(products);
    if (pipeline.leads()) wait_for_stores();
    __syncthreads();  // the products take the hidden layer's place
    leave_products(memory, products, at);
    __syncthreads();
    float* dresidual = rows_of_warp(p.dresidual, at);
    bfloat16* dbranch = rows_of_warp(static_cast<bfloat16*>(p.dbranch[0]), at);
    Row<1> dnormed[kRowsOfWarp];
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) dnormed[r] = take_products(memory, at.row(r), lane);
    Row<1> sums[2] = {};
    add_norm_gradients(stream, dnormed, saved, norm_weights[0], sums[0], sums[1]);
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      leave_row(memory, at.row(r), stream[r], lane);
      if (at.row(r) >= at.rows) continue;
      store_row(dresidual + r * kWidth, stream[r], lane);
      store_row(dbranch + r * kWidth, stream[r], lane);
    }
    leave_column_sums<kWarps>(memory.warp_columns, sums, 2, parts + 3 * kWidth, lane);
  }

  store_columns<true>(maps.dy, last_chunks, pipeline, tile, at);
#endif
}

}  // namespace

cudaError_t launch_token_chain_backward(const TokenChainBackwardParams& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  if (!token_chain_fits(p.rows, kChainWidth, p.inner, p.hidden_width, p.next_width)) {
    return cudaErrorInvalidValue;
  }
  BackwardMaps maps{};
  cudaError_t error =
      make_weight_maps(maps.weights, p.weights, p.inner, p.hidden_width, p.next_width);
  if (error == cudaSuccess && p.weights.in_proj != nullptr) {
    error = make_tensor_map(maps.dnext, p.dnext, p.rows, p.next_width, kRows);
  }
  if (error == cudaSuccess) {
    error = make_tensor_map(maps.slope, p.slope, p.rows, p.hidden_width, kRows);
  }
  if (error == cudaSuccess) {
    error = make_tensor_map(maps.dhidden, p.dhidden, p.rows, p.hidden_width, kRows);
  }
  if (error == cudaSuccess) error = make_tensor_map(maps.dy, p.dy, p.rows, p.inner, kRows);
  if (error != cudaSuccess) return error;
  return launch_blocks(token_chain_backward_kernel, p, maps, stream);
}

}  // namespace dmamba::kernels
