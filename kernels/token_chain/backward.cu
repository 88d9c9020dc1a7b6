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
template <int kRows>
struct SavedRow {
  Row<1> sum;
  RowStatistics statistics;
};

template <int kRows>
__device__ __forceinline__ SavedRow<kRows> load_saved(const TokenChainBackwardParams& p, int which,
                                                      int64_t row, bool exists, const Lane& lane) {
  SavedRow<kRows> saved = {row_or_zero(p.sums[which], row, exists, lane), {0.0F, 0.0F}};
  if (exists) {
    float s[2];
    load_pack<float, 2>(p.statistics[which] + 2 * row, s);
    saved.statistics = {s[0], s[1]};
  }
  return saved;
}

__device__ __forceinline__ void add(Row<1>& to, const Row<1>& other) {
#pragma unroll
  for (int e = 0; e < kRowVector; ++e) to.v[0][e] += other.v[0][e];
}

/// Sums of a chunk's columns over a warp's 16 rows, into `columns`, the group's.
template <int kTiles>
__device__ __forceinline__ void leave_hidden_sums(float* columns, const float (&values)[kTiles][4],
                                                  int lane) {
  float sums[2 * kTiles];
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
    sums[2 * c] = values[c][0] + values[c][2];
    sums[2 * c + 1] = values[c][1] + values[c][3];
  }
  constexpr int kKept = 2 * kTiles / 8 > 0 ? 2 * kTiles / 8 : 1;
  const int first = reduce_scatter<8, 4, 2 * kTiles>(sums, lane);
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int n = first + i;
    columns[n / 2 * 8 + lane % 4 * 2 + n % 2] = sums[i];  // several lanes may write the same
  }
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    token_chain_backward_kernel(const __grid_constant__ TokenChainBackwardParams p) {
  using S = Shape<kRows>;
  extern __shared__ __align__(128) unsigned char bytes[];
  auto& memory = *reinterpret_cast<Memory<kRows>*>(bytes);
  const Place<kRows> at(p.rows);
  const Lane lane{at.lane, kWidth};
  const int column = at.group * S::kTiles * 8;  // of a chunk, the group's first
  const int slices = p.weights.in_proj != nullptr ? static_cast<int>(p.next_width) / kChunk : 0;
  const int chunks = static_cast<int>(p.hidden_width) / kChunk;
  const int last_chunks = static_cast<int>(p.inner) / kChunk;
  float* parts = p.parts + int64_t{blockIdx.x} * (kChainColumns + p.hidden_width);
  const auto* dnext = static_cast<const bfloat16*>(p.dnext) + at.first_row * p.next_width;
  wait_for_stream();
  const Sender sender;
  auto pipeline = make_pipeline(
      memory, slices + 2 * chunks + last_chunks, [&](uint32_t slot, uint32_t terms, int step) {
        if (step < slices) {
          sender.send_rows(slot, p.weights.in_proj, step);
          sender.send<kRows, true>(terms, dnext + step * kChunk, p.next_width, at.rows);
        } else if (step < slices + 2 * chunks) {
          const int chunk = (step - slices) / 2;
          if ((step - slices) % 2 == 0) {
            sender.send_columns(slot, p.weights.second, p.hidden_width, chunk);
          } else {
            sender.send_rows(slot, p.weights.first, chunk);
          }
        } else {
          sender.send_columns(slot, p.weights.out_proj, p.inner, step - slices - 2 * chunks);
        }
      });
  pipeline.begin();

  const Columns<true, kRows> columns(at);
  const uint32_t tile = shared_address(memory.tile);
  Row<1> stream[S::kRowsOfWarp];  // gradients of the warp's rows of the residual stream
  {
    SavedRow<kRows> saved[S::kRowsOfWarp];
#pragma unroll
    for (int r = 0; r < S::kRowsOfWarp; ++r) {
      const bool exists = at.row(r) < at.rows;
      saved[r] = load_saved<kRows>(p, 1, at.first_row + at.row(r), exists, lane);
      stream[r] = row_or_zero(p.dsum, at.first_row + at.row(r), exists && p.dsum != nullptr, lane);
    }
    if (slices > 0) {
      typename Columns<true, kRows>::Halves halves = {};
      for (int i = 0; i < slices; ++i) {
        const int slot = pipeline.take();
        columns.add(halves, pipeline.terms_of(slot), pipeline.slot(slot));
      }
      float products[S::kTiles][4];
      columns.join(products, halves);
      __syncthreads();  // they take the terms' place
      leave_products(memory.products[0], products, at.fragment_row(), column, at.lane);
      __syncthreads();
    }
    const Row<1> weight = load_row<1>(p.norm_weights[1], lane);
    const uint64_t key = p.dropout.key != nullptr ? static_cast<uint64_t>(*p.dropout.key) : 0;
    Row<1> sums[3] = {};
#pragma unroll
    for (int r = 0; r < S::kRowsOfWarp; ++r) {
      const int row = at.row(r);
      const int64_t global_row = at.first_row + row;
      const bool exists = row < at.rows;
      const Row<1> dnormed =
          slices > 0 ? take_products<1>(memory, row, lane)
                     : row_or_zero(static_cast<const bfloat16*>(p.dnext), global_row, exists, lane);
      add(stream[r], norm_gradient(dnormed, saved[r].sum, weight, saved[r].statistics, sums[0],
                                   sums[1], lane));
      Row<1> branch = stream[r];
      if (p.dropout.key != nullptr) apply_dropout(branch, p.dropout, key, global_row, lane);
      add(sums[2], branch);
      leave_row(memory, row, branch, lane);
      if (exists) {
        store_row(static_cast<bfloat16*>(p.dbranch[1]) + global_row * kWidth, branch, lane);
      }
    }
    leave_column_sums<kWarps>(memory.warp_columns, sums, 3, parts, lane);
  }
  __syncthreads();

  {
    SavedRow<kRows> saved[S::kRowsOfWarp];
#pragma unroll
    for (int r = 0; r < S::kRowsOfWarp; ++r) {
      saved[r] = load_saved<kRows>(p, 0, at.first_row + at.row(r), at.row(r) < at.rows, lane);
    }
    const Terms<true, kRows> by_terms(at);
    FragmentPlace slope_place(p.slope, p.hidden_width, column, at);
    FragmentPlace hidden_place(p.dhidden, p.hidden_width, column, at);
    float products[kWidth / 8][4] = {};
    float* hidden_sums = parts + kChainColumns;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      FragmentWords words[S::kPairs];
#pragma unroll
      for (int k = 0; k < S::kPairs; ++k) words[k] = load_fragment(slope_place, 16 * k);
      float hidden[S::kTiles][4];
      {
        typename Columns<true, kRows>::Halves halves = {};
        columns.add(halves, tile, pipeline.slot(pipeline.take()));
        columns.join(hidden, halves);
      }
      uint32_t terms[S::kPairs][4];
#pragma unroll
      for (int k = 0; k < S::kPairs; ++k) {
        uint32_t slopes[4];
        spread(slopes, words[k], at.lane);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float* pair = &hidden[2 * k + i / 2][i % 2 * 2];
          pair[0] *= __uint_as_float(slopes[i] << 16);
          pair[1] *= __uint_as_float(slopes[i] & 0xFFFF0000U);
        }
        as_terms(terms[k], hidden[2 * k], hidden[2 * k + 1]);
        store_fragment(hidden_place, 16 * k, terms[k], at.lane);
      }
      slope_place.advance(kChunk);
      hidden_place.advance(kChunk);
      leave_hidden_sums(memory.hidden_sums[at.row_warp] + column, hidden, at.lane);
      by_terms.add(products, terms, pipeline.slot(pipeline.take()));
      // take() has seen all warps here: their sums are there.
      if (threadIdx.x < kChunk) {
        float sum = 0.0F;
#pragma unroll
        for (int w = 0; w < S::kRowWarps; ++w) sum += memory.hidden_sums[w][threadIdx.x];
        hidden_sums[chunk * kChunk + threadIdx.x] = sum;
      }
    }
    leave_parts(memory, products, at);
    const Row<1> weight = load_row<1>(p.norm_weights[0], lane);
    Row<1> sums[2] = {};
#pragma unroll
    for (int r = 0; r < S::kRowsOfWarp; ++r) {
      const int row = at.row(r);
      add(stream[r], norm_gradient(take_products<S::kParts>(memory, row, lane), saved[r].sum,
                                   weight, saved[r].statistics, sums[0], sums[1], lane));
      leave_row(memory, row, stream[r], lane);
      if (row < at.rows) {
        const int64_t first = (at.first_row + row) * kWidth;
        store_row(p.dresidual + first, stream[r], lane);
        store_row(static_cast<bfloat16*>(p.dbranch[0]) + first, stream[r], lane);
      }
    }
    leave_column_sums<kWarps>(memory.warp_columns, sums, 2, parts + 3 * kWidth, lane);
  }
  __syncthreads();

  FragmentPlace dy_place(p.dy, p.inner, column, at);
  for (int chunk = 0; chunk < last_chunks; ++chunk) {
    typename Columns<true, kRows>::Halves halves = {};
    columns.add(halves, tile, pipeline.slot(pipeline.take()));
    float products[S::kTiles][4];
    columns.join(products, halves);
#pragma unroll
    for (int k = 0; k < S::kPairs; ++k) {
      uint32_t words[4];
      as_terms(words, products[2 * k], products[2 * k + 1]);
      store_fragment(dy_place, 16 * k, words, at.lane);
    }
    dy_place.advance(kChunk);
  }
}

}  // namespace

cudaError_t launch_token_chain_backward(const TokenChainBackwardParams& p, cudaStream_t stream) {
  if (!token_chain_fits(kChainWidth, p.inner, p.hidden_width, p.next_width)) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0) return cudaSuccess;
  return token_chain_block_rows(p.rows) == 32
             ? launch_blocks<32>(token_chain_backward_kernel<32>, p, stream)
             : launch_blocks<64>(token_chain_backward_kernel<64>, p, stream);
}

}  // namespace dmamba::kernels
