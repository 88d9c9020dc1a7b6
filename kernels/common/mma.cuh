// Tensor-core products with float32 sums, a warp at a time: of bfloat16 (PTX ISA, mma.m16n8k16),
// and of float32 rounded to TF32 (mma.m16n8k8).
//
// The lane holds of A (16 x 16) four words, of B (16 x 8) two, of the sums (16 x 8) four: rows
// lane / 4 and lane / 4 + 8, columns 2 (lane % 4) and the next.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/copy.cuh"

namespace dmamba::kernels {

/// c += a b
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The nearest TF32.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

/// c += a b for a (16 x 8): rows lane / 4 and + 8, column lane % 4, then the same four columns on;
/// b (8 x 8): rows lane % 4 and + 4, column lane / 4.
__device__ __forceinline__ void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8 x 8 tiles of 16-bit values: lane i names row i % 8 of tile i / 8, 16 bytes at an address
/// in shared memory, and receives of each tile row lane / 4, columns 2 (lane % 4) and the next.
__device__ __forceinline__ void load_tiles(uint32_t (&v)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(at)
               : "memory");
}

__device__ __forceinline__ void load_tiles(uint32_t (&v)[4], const void* row) {
  load_tiles(v, shared_address(row));
}

/// The same of the transposed tiles.
__device__ __forceinline__ void load_tiles_transposed(uint32_t (&v)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(at)
               : "memory");
}

__device__ __forceinline__ void load_tiles_transposed(uint32_t (&v)[4], const void* row) {
  load_tiles_transposed(v, shared_address(row));
}

}  // namespace dmamba::kernels
