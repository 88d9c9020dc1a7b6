// Host side: from run-time sizes to the compiled shapes.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels/common/alignment.h"
#include "kernels/selective_scan/launch.h"
#include "kernels/selective_scan/tile.cuh"

namespace dmamba::kernels {

/// Whether A is row-major and aligned.
inline bool rows_of_A_aligned(const SelectiveScanParams& p) {
  return p.d_state % 4 == 0 && p.A_state_stride == 1 && p.A_channel_stride == p.d_state &&
         aligned(p.A, 16);
}

/// What memory allows as one access; `rows` are the tensors of (batch, L, d_inner).
inline ScanVectors vectors_of(const SelectiveScanParams& p, std::initializer_list<Sequence> rows) {
  const int64_t item = storage_bytes(p.storage);
  ScanVectors vectors{
      p.d_inner % 4 == 0,
      p.d_state % 4 == 0 && rows_aligned(p.B, 4, item) && rows_aligned(p.C, 4, item),
      rows_of_A_aligned(p)};
  for (const Sequence& s : rows) vectors.channels = vectors.channels && rows_aligned(s, 4, item);
  return vectors;
}

/// What a Mamba block asks for, which has kernels of its own.
inline bool is_usual(const SelectiveScanParams& p, const ScanVectors& vectors) {
  return p.delta_softplus && p.z.data != nullptr && vectors.channels && vectors.states &&
         vectors.A && p.d_state == UsualShape::kStates;
}

/// Calls f(ScanShape<lanes>{}) with the fewest lanes that hold d_state states, four each.
template <class F>
cudaError_t with_shape(int64_t d_state, F&& f) {
  if (d_state <= 8) return f(ScanShape<2>{});
  if (d_state <= 16) return f(ScanShape<4>{});
  if (d_state <= 32) return f(ScanShape<8>{});
  if (d_state <= 64) return f(ScanShape<16>{});
  if (d_state <= kScanMaxStates) return f(ScanShape<32>{});
  return cudaErrorInvalidValue;
}

inline int64_t chunks_of(const SelectiveScanParams& p, const SelectiveScanPlan& plan) {
  return (p.length + plan.chunk_length - 1) / plan.chunk_length;
}

/// Floats of one (batch, n_chunks, d_inner, d_state) array, rounded up to 256 bytes.
inline int64_t carry_floats(const SelectiveScanParams& p, int64_t n_chunks) {
  return (p.batch * n_chunks * p.d_inner * p.d_state + 63) / 64 * 64;
}

/// All tokens, and channels and states of a sequence are counted in 32 bits.
inline bool indices_fit(const SelectiveScanParams& p) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  return p.length * p.d_state < kLimit && p.d_inner < kLimit && p.batch * p.length < 4 * kLimit;
}

inline bool plan_is_valid(const SelectiveScanPlan& plan) {
  return plan.chunk_length > 0 && plan.chunk_length % kScanChunkMultiple == 0;
}

}  // namespace dmamba::kernels
