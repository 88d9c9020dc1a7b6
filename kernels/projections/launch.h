// What src/ops/cuda calls for the products between the convolution and the scan. The rules of
// kernels/selective_scan/launch.h hold here too.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/projections/params.h"

namespace dmamba::kernels {

/// Compute capability, times ten, from which on they work.
constexpr int kProjectionsArchitecture = 80;

/// Rows up to which the kernels are used. Of 256 columns 19200 rows were measured (in bfloat16 of
/// rank 8, three blocks a multiprocessor; in float32 one fills it, and no more are taken); of 512,
/// whose blocks fill one, no more than these.
constexpr int64_t projections_most_rows(int64_t inner, Storage storage) {
  if (storage == Storage::kFloat32) return 19200;
  return inner == 256 ? 65536 : 8448;
}

/// Whether the kernels take so many rows of these widths; in float32 the matrices of 512 columns do
/// not find room in shared memory.
constexpr bool projections_fit(int64_t rows, int64_t inner, int64_t rank, int64_t width,
                               Storage storage) {
  const bool inner_fits =
      inner == 256 ? storage != Storage::kFloat64 : inner == 512 && storage == Storage::kBFloat16;
  return inner_fits && rows <= projections_most_rows(inner, storage) && (rank == 8 || rank == 16) &&
         width > rank && width % 8 == 0 && width <= 48;
}

/// Bytes of shared memory that a block asks for.
int projections_shared_bytes(int64_t inner, Storage storage);

cudaError_t launch_projections(const ProjectionsParams& p, cudaStream_t stream);
cudaError_t launch_projections_backward(const ProjectionsBackwardParams& p, cudaStream_t stream);

}  // namespace dmamba::kernels
