// Products of matrices in shared memory by a warpgroup (four warps) on Hopper's tensor cores:
// bfloat16 with float32 sums (PTX ISA, wgmma.mma_async), and TF32 with the first factor in
// registers. For compute capability 9.0a alone.
//
// Both matrices lie in panels: rows of 64 numbers (128 bytes), pack of 16 bytes p of row r at
// p ^ (r % 8), a panel's first byte on 1024. The warp has of the sums 16 rows: a lane rows lane / 4
// and lane / 4 + 8, of each eight columns 2 (lane % 4) and the next.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dmamba::kernels {

/// A matrix from this address on: 8 rows of a panel are 1024 bytes, and the next 8 follow. A
/// constant number of bytes further is the descriptor and a 16th of them. Of matrices that are
/// taken by columns (kByTerm below) and have more than 64, the next panel is `panel_bytes` further.
__device__ __forceinline__ uint64_t panel_descriptor(uint32_t address, uint32_t panel_bytes = 16) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kNextRows = uint64_t{1024 / 16} << 32;
  const uint64_t next_panel = uint64_t{panel_bytes / 16} << 16;
  const uint32_t place = address & 0x3ffff;  // above it, in a cluster, stands which block's
  return kSwizzle128 | kNextRows | next_panel | place >> 4;
}

/// Before a warpgroup's first product, and after its registers have been used otherwise.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most `kLeft` groups of products are on their way.
template <int kLeft>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

/// The same; then these sums may be read.
template <int kLeft, int kTiles>
__device__ __forceinline__ void wait_for_products(float (&sums)[kTiles][4]) {
  wait_for_products<kLeft>();
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(sums[c][e])::"memory");
  }
}

/// Zeros, in registers before the first product: set among them, they would have to wait for each
/// other.
template <int kTiles>
__device__ __forceinline__ void clear_sums(float (&sums)[kTiles][4]) {
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
#pragma unroll
    for (float& sum : sums[c]) {
      sum = 0.0F;
      asm volatile("" : "+f"(sum));
    }
  }
}

/// What was written to shared memory becomes visible to products; before the barrier after which
/// they begin.
__device__ __forceinline__ void publish_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// sums (64 x 32) += or = a (64 x 16) b (16 x 32). b: panel rows are its columns. a: panel rows are
/// its rows or (kByTerm) its columns.
template <bool kByTerm>
__device__ __forceinline__ void multiply_panels(float (&s)[4][4], uint64_t a, uint64_t b,
                                                bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15}, %16, %17, add, 1, 1, %19, 0;\n"
      "}\n"
      : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3]), "+f"(s[1][0]), "+f"(s[1][1]),
        "+f"(s[1][2]), "+f"(s[1][3]), "+f"(s[2][0]), "+f"(s[2][1]), "+f"(s[2][2]), "+f"(s[2][3]),
        "+f"(s[3][0]), "+f"(s[3][1]), "+f"(s[3][2]), "+f"(s[3][3])
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kByTerm ? 1 : 0));
}

// A lane's sums of 64 and of 128 columns: their names in an instruction, and what those stand for.
#define DMAMBA_NAMES_32                                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DMAMBA_NAMES_64 "{" DMAMBA_NAMES_32 "}"
#define DMAMBA_NAMES_128                                                                         \
  "{" DMAMBA_NAMES_32                                                                            \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define DMAMBA_FOUR(c) "+f"(s[c][0]), "+f"(s[c][1]), "+f"(s[c][2]), "+f"(s[c][3])
#define DMAMBA_SUMS_64                                                                            \
  DMAMBA_FOUR(0), DMAMBA_FOUR(1), DMAMBA_FOUR(2), DMAMBA_FOUR(3), DMAMBA_FOUR(4), DMAMBA_FOUR(5), \
      DMAMBA_FOUR(6), DMAMBA_FOUR(7)
#define DMAMBA_SUMS_128                                                             \
  DMAMBA_SUMS_64, DMAMBA_FOUR(8), DMAMBA_FOUR(9), DMAMBA_FOUR(10), DMAMBA_FOUR(11), \
      DMAMBA_FOUR(12), DMAMBA_FOUR(13), DMAMBA_FOUR(14), DMAMBA_FOUR(15)

/// sums (64 x 128) += a (64 x 16) b (16 x 128): panel rows are a's rows and b's columns, or (by
/// term) the other way.
template <bool kRowsByTerm, bool kColumnsByTerm>
__device__ __forceinline__ void multiply_panels(float (&s)[16][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " DMAMBA_NAMES_128
               ", %64, %65, 1, 1, 1, %66, %67;\n"
               : DMAMBA_SUMS_128
               : "l"(a), "l"(b), "n"(kRowsByTerm ? 1 : 0), "n"(kColumnsByTerm ? 1 : 0));
}

/// The same for 64 columns.
template <bool kRowsByTerm, bool kColumnsByTerm>
__device__ __forceinline__ void multiply_panels(float (&s)[8][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " DMAMBA_NAMES_64
               ", %32, %33, 1, 1, 1, %34, %35;\n"
               : DMAMBA_SUMS_64
               : "l"(a), "l"(b), "n"(kRowsByTerm ? 1 : 0), "n"(kColumnsByTerm ? 1 : 0));
}

/// sums (64 x 128) += a (64 x 8) b (8 x 128) of TF32, rounded before. The lane has of a rows lane /
/// 4 and + 8 of the warp's 16, column lane % 4, then the same four columns on; b's panel rows are
/// its columns, of 32 numbers.
__device__ __forceinline__ void multiply_tf32(float (&s)[16][4], const uint32_t (&a)[4],
                                              uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 " DMAMBA_NAMES_128
               ", {%64, %65, %66, %67}, %68, 1, 1, 1;\n"
               : DMAMBA_SUMS_128
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/// The same for 64 columns.
__device__ __forceinline__ void multiply_tf32(float (&s)[8][4], const uint32_t (&a)[4],
                                              uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 " DMAMBA_NAMES_64
               ", {%32, %33, %34, %35}, %36, 1, 1, 1;\n"
               : DMAMBA_SUMS_64
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef DMAMBA_NAMES_32
#undef DMAMBA_NAMES_64
#undef DMAMBA_NAMES_128
#undef DMAMBA_FOUR
#undef DMAMBA_SUMS_64
#undef DMAMBA_SUMS_128

/// Stores four 8 x 8 tiles of 16-bit values transposed: lane i names row i % 8 of tile i / 8, 16
/// bytes at an address in shared memory; a lane gives of each tile rows 2 (lane % 4) and the next,
/// column lane / 4.
__device__ __forceinline__ void store_tiles_transposed(uint32_t at, uint32_t v0, uint32_t v1,
                                                       uint32_t v2, uint32_t v3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(v0), "r"(v1), "r"(v2), "r"(v3)
               : "memory");
}

}  // namespace dmamba::kernels
