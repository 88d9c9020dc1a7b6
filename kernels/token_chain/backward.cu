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
template <int kRows>
__device__ __forceinline__ void load_saved(SavedRow (&saved)[Place<kRows>::kRowsOfWarp],
                                           const TokenChainBackwardParams& p, int which,
                                           const Place<kRows>& at, const Lane& lane) {
  const float* sums = rows_of_warp(p.sums[which], at);
  const float* statistics = p.statistics[which] + 2 * (at.first_row + at.row(0));
#pragma unroll
  for (int r = 0; r < at.kRowsOfWarp; ++r) {
    saved[r] = {row_or_zero(sums + r * kWidth, at.row(r) < at.rows, lane), {0.0F, 0.0F}};
    if (at.row(r) < at.rows) {
      float s[2];
      load_pack<float, 2>(statistics + 2 * r, s);
      saved[r].statistics = {s[0], s[1]};
    }
  }
}

[[maybe_unused]] __device__ __forceinline__ void add(Row<1>& to, const Row<1>& other) {
#pragma unroll
  for (int e = 0; e < kRowVector; ++e) to.v[0][e] += other.v[0][e];
}

/// The fragments of a matrix in shared memory that lie where a lane's sums do, times those.
template <int kRows>
__device__ __forceinline__ void multiply_by(Sums<kRows>& sums, uint32_t matrix,
                                            const Place<kRows>& at) {
  const int token = at.lane / 16 * 8 + at.lane % 8, pack = at.outputs() / kPack + at.lane / 8 % 2;
  const uint32_t from = matrix + pack_at<kRows>(token, pack);
#pragma unroll
  for (int j = 0; j < kRows / 8; j += 2) {
    uint32_t words[4];
    load_tiles_transposed(words, from + j * 8 * 128);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* pair = &sums[j + i / 2][i % 2 * 2];
      pair[0] *= __uint_as_float(words[i] << 16);
      pair[1] *= __uint_as_float(words[i] & 0xFFFF0000U);
    }
  }
}

/// The sums over the tokens of the lane's two outputs, by one lane of four to `to`.
template <int kRows>
__device__ __forceinline__ void store_token_sums(float* to, const Sums<kRows>& sums,
                                                 const Place<kRows>& at) {
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

template <int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    token_chain_backward_kernel(const __grid_constant__ TokenChainBackwardParams p,
                                const __grid_constant__ BackwardMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char bytes[];
  auto& memory = *reinterpret_cast<Memory<kRows>*>(bytes);
  const Place<kRows> at(p.rows);
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
        const int column = step / 2 * kChunk;
        if (step % 2 == 0) return {&maps.weights.second, column, 0, &maps.slope, column};
        return {&maps.weights.first, 0, column, nullptr, 0};
      });
  wait_for_stream();
  pipeline.begin();

  const uint32_t tile = shared_address(memory.tile);
  Row<1> stream[at.kRowsOfWarp];  // gradients of the warp's rows of the residual stream
  {
    SavedRow saved[at.kRowsOfWarp];
    load_saved<kRows>(saved, p, 1, at, lane);
    if (p.dsum != nullptr) {
      const float* dsum = rows_of_warp(p.dsum, at);
#pragma unroll
      for (int r = 0; r < at.kRowsOfWarp; ++r) {
        stream[r] = row_or_zero(dsum + r * kWidth, at.row(r) < at.rows, lane);
      }
    } else {
#pragma unroll
      for (int r = 0; r < at.kRowsOfWarp; ++r) stream[r] = {};
    }
    if (slices > 0) {
      Sums<kRows> sums;
      for (int i = 0; i < slices; ++i) {
        const int slot = pipeline.take();
        multiply<true, kRows>(sums, pipeline.slot(slot), pipeline.terms_of(slot), i > 0);
        wait_for_products<1>(sums);
      }
      wait_for_products<0>(sums);
      leave_products(memory, sums, at);
      __syncthreads();
    }
    const Row<1> weight = load_row<1>(p.norm_weights[1], lane);
    const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
    const bfloat16* dnext = rows_of_warp(static_cast<const bfloat16*>(p.dnext), at);
    bfloat16* dbranch = rows_of_warp(static_cast<bfloat16*>(p.dbranch[1]), at);
    Row<1> sums[3] = {};
#pragma unroll
    for (int r = 0; r < at.kRowsOfWarp; ++r) {
      const int row = at.row(r);
      const bool exists = row < at.rows;
      const Row<1> dnormed =
          slices > 0 ? take_products(memory, row, lane)
                     : row_or_zero(dnext + r * kWidth, exists, lane);
      add(stream[r], norm_gradient(dnormed, saved[r].sum, weight, saved[r].statistics, sums[0],
                                   sums[1], lane));
      Row<1> branch = stream[r];
      if (p.dropout.key != nullptr) apply_dropout(branch, p.dropout, key, at.first_row + row, lane);
      add(sums[2], branch);
      leave_row(memory, row, branch, lane);
      if (exists) store_row(dbranch + r * kWidth, branch, lane);
    }
    leave_column_sums<kWarps>(memory.warp_columns, sums, 3, parts, lane);
  }

  {
    SavedRow saved[at.kRowsOfWarp];
    load_saved<kRows>(saved, p, 0, at, lane);
    Sums<kRows> dnormed;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      Sums<kRows> hidden;
      const int slot = pipeline.take();
      multiply<true, kRows>(hidden, pipeline.slot(slot), tile, false);
      wait_for_products<0>(hidden);
      multiply_by<kRows>(hidden, pipeline.terms_of(slot), at);
      const uint32_t gradients = shared_address(memory.hidden[chunk % 2]);
      leave_rounded<kRows>(gradients, hidden, at);
      multiply<true, kRows>(dnormed, pipeline.slot(pipeline.take()), gradients, chunk > 0);
      if (pipeline.leads()) {
        store_tile(maps.dhidden, chunk * kChunk, gradients, at);
        commit_stores();
      }
      store_token_sums<kRows>(parts + kChainColumns + chunk * kChunk, hidden, at);
    }
    wait_for_products<0>(dnormed);
    if (pipeline.leads()) wait_for_stores();
    __syncthreads();  // the products take the hidden layer's place
    leave_products(memory, dnormed, at);
    __syncthreads();
    const Row<1> weight = load_row<1>(p.norm_weights[0], lane);
    float* dresidual = rows_of_warp(p.dresidual, at);
    bfloat16* dbranch = rows_of_warp(static_cast<bfloat16*>(p.dbranch[0]), at);
    Row<1> sums[2] = {};
#pragma unroll
    for (int r = 0; r < at.kRowsOfWarp; ++r) {
      const int row = at.row(r);
      add(stream[r], norm_gradient(take_products(memory, row, lane), saved[r].sum, weight,
                                   saved[r].statistics, sums[0], sums[1], lane));
      leave_row(memory, row, stream[r], lane);
      if (row < at.rows) {
        store_row(dresidual + r * kWidth, stream[r], lane);
        store_row(dbranch + r * kWidth, stream[r], lane);
      }
    }
    leave_column_sums<kWarps>(memory.warp_columns, sums, 2, parts + 3 * kWidth, lane);
  }

  store_columns<true>(maps.dy, last_chunks, pipeline, tile, at);
#endif
}

}  // namespace

cudaError_t launch_token_chain_backward(const TokenChainBackwardParams& p, cudaStream_t stream) {
  if (!token_chain_fits(kChainWidth, p.inner, p.hidden_width, p.next_width)) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  const auto block_rows = static_cast<int>(token_chain_block_rows(p.rows));
  BackwardMaps maps;
  cudaError_t error =
      make_weight_maps(maps.weights, p.weights, p.inner, p.hidden_width, p.next_width);
  if (error == cudaSuccess && p.weights.in_proj != nullptr) {
    error = make_tensor_map(maps.dnext, p.dnext, p.rows, p.next_width, block_rows);
  }
  if (error == cudaSuccess) {
    error = make_tensor_map(maps.slope, p.slope, p.rows, p.hidden_width, block_rows);
  }
  if (error == cudaSuccess) {
    error = make_tensor_map(maps.dhidden, p.dhidden, p.rows, p.hidden_width, block_rows);
  }
  if (error == cudaSuccess) error = make_tensor_map(maps.dy, p.dy, p.rows, p.inner, block_rows);
  if (error != cudaSuccess) return error;
  return block_rows == 32 ? launch_blocks<32>(token_chain_backward_kernel<32>, p, maps, stream)
                          : launch_blocks<64>(token_chain_backward_kernel<64>, p, maps, stream);
}

}  // namespace dmamba::kernels
