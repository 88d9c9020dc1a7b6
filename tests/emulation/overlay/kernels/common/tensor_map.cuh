// In the place of kernels/common/tensor_map.cuh: panels that come when their barrier is waited for,
// and leave when their stores are.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/common/copy.cuh"

/// A matrix of numbers of so many bytes, and rows of the boxes that are taken from it.
struct CUtensorMap {
  unsigned char* data;
  int64_t rows, columns, stride;
  int box_rows, item;
};

namespace dmamba::kernels {

constexpr int kPanelColumns = 64;

template <class T = __nv_bfloat16>
cudaError_t make_tensor_map(CUtensorMap& map, const void* data, int64_t rows, int64_t columns,
                            int box_rows, int64_t stride = 0) {
  map = {static_cast<unsigned char*>(const_cast<void*>(data)),
         rows,
         columns,
         stride > 0 ? stride : columns,
         box_rows,
         sizeof(T)};
  const bool aligned =
      map.stride * map.item % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  const bool fits = rows > 0 && columns > 0 && box_rows <= 256;
  return data == nullptr || (aligned && fits) ? cudaSuccess : cudaErrorInvalidValue;
}

inline void prefetch_map(const CUtensorMap&) {}
inline void make_barrier(uint32_t barrier, int arrivals = 1) {
  emulation::make_mbarrier(at_shared_address(barrier), arrivals);
}
inline void arrive(uint32_t barrier) { emulation::arrive_at(at_shared_address(barrier), 0); }
inline void publish_barriers() {}
inline void expect_bytes(uint32_t barrier, uint32_t bytes) {
  emulation::arrive_at(at_shared_address(barrier), bytes);
}
inline void wait_for_barrier(uint32_t barrier, uint32_t parity, EmulationPlace here = DMAMBA_HERE) {
  emulation::wait_for_phase_of(at_shared_address(barrier), parity, here);
}

/// Calls f(number in shared memory, number in the matrix or null outside of it) for a panel: packs
/// of 16 bytes lie at theirs ^ row % 8.
template <class F>
void for_panel(unsigned char* panel, const CUtensorMap& map, int column, int row, const F& f) {
  if (reinterpret_cast<uintptr_t>(panel) % 1024 != 0) emulation::fail("a panel not on 1024 bytes");
  for (int r = 0; r < map.box_rows; ++r) {
    for (int at = 0; at < 128; at += map.item) {
      const int c = at / map.item;
      const bool inside =
          row + r >= 0 && row + r < map.rows && column + c >= 0 && column + c < map.columns;
      unsigned char* number =
          inside ? map.data + ((row + r) * map.stride + column + c) * map.item : nullptr;
      f(panel + r * 128 + ((at / 16) ^ (r % 8)) * 16 + at % 16, number);
    }
  }
}

inline void load_panel(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t barrier) {
  unsigned char* panel = at_shared_address(to);
  const int64_t bytes = int64_t{map.box_rows} * 128;
  std::memset(panel, 0xFF, bytes);
  emulation::bring_bytes(at_shared_address(barrier), bytes, [=] {
    for_panel(panel, map, column, row, [&](unsigned char* at, const unsigned char* number) {
      if (number != nullptr) {
        std::memcpy(at, number, map.item);
      } else {
        std::memset(at, 0, map.item);
      }
    });
  });
}

inline void store_panel(const CUtensorMap& map, int column, int row, uint32_t from) {
  unsigned char* panel = at_shared_address(from);
  emulation::queues().stores.add([=] {
    for_panel(panel, map, column, row, [&](const unsigned char* at, unsigned char* number) {
      if (number != nullptr) std::memcpy(number, at, map.item);
    });
  });
}
inline void commit_stores() { emulation::queues().stores.commit(); }
inline void wait_for_stores() { emulation::queues().stores.wait(0); }

}  // namespace dmamba::kernels
