// What the launches of both kernels of Hopper's own instructions share.
#pragma once

#include "kernels/common/tensor_map.cuh"
#include "kernels/weight_gradients/tiles.cuh"

namespace dmamba::kernels::weight_gradients {

/// The factors of a launch as the copy engine takes them.
struct Maps {
  CUtensorMap dy[kGradientsPerLaunch], x[kGradientsPerLaunch];
};

/// Launches `kernel` for factors of T, whose panels have so many tokens, as often as they need it.
template <class T>
cudaError_t launch_hopper_batches(void (*kernel)(Batch, Maps, int), const WeightGradient* gradients,
                                  int count, int panel_tokens, size_t bytes, cudaStream_t stream) {
  for (int first = 0; first < count; first += kGradientsPerLaunch) {
    const Batch batch = make_batch(gradients + first, count - first);
    Maps maps{};
    for (int i = 0; i < batch.count; ++i) {
      const WeightGradient& g = batch.gradients[i];
      cudaError_t error =
          make_tensor_map<T>(maps.dy[i], g.dy, g.rows, g.n, panel_tokens, g.dy_stride);
      if (error == cudaSuccess) {
        error = make_tensor_map<T>(maps.x[i], g.x, g.rows, g.m, panel_tokens, g.x_stride);
      }
      if (error != cudaSuccess) return error;
    }
    const int blocks = blocks_of_cluster(batch);
    const cudaError_t error =
        launch_tiles(kernel, batch, blocks, bytes, stream, batch, maps, blocks);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace dmamba::kernels::weight_gradients
