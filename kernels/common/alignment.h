// Host side: what memory allows as one access. Free of torch and of CUDA.
#pragma once

#include <cstdint>

#include "kernels/common/types.h"

namespace dmamba::kernels {

inline bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

/// Bytes of a number in the types that the CUDA kernels store.
inline int64_t storage_bytes(Storage storage) { return storage == Storage::kBFloat16 ? 2 : 4; }

/// Whether `width` neighbouring channels of every token can be one access. An absent tensor says
/// yes.
inline bool rows_aligned(const Sequence& s, int64_t width, int64_t item) {
  return s.data == nullptr || (aligned(s.data, width * item) && s.batch_stride % width == 0 &&
                               s.step_stride % width == 0);
}

}  // namespace dmamba::kernels
