// The recurrent policy's step on a CUDA device in one launch, from what was seen to actions.
//
// A cluster of blocks has a few environments, three tokens each, and walks them through the whole
// model. Its blocks ("ranks") share every layer's channels: a rank has its channels' columns of
// in_proj and everything in between, which needs no other, and its channels' rows of x_proj and
// out_proj, of which it makes a part of each sum. So the parts of x_proj go to all ranks, those of
// out_proj to the rank that owns the column, which adds them up to the residual stream and hands
// the sum round. The mixer's hidden units are shared in the same way. Five such rounds a layer.
//
// Weights come in the order in which they are read, in bulk copies far ahead of the arithmetic. A
// thread multiplies four columns with a few tokens and every n-th row; those n sums are added up in
// shared memory, in one order, so that the same input gives the same bits.
//
// Floor: all weights once a cluster (2.9 MB for d_model 128 and three layers), 64 bytes a clock and
// multiprocessor at most; two FLOP a weight and token: 0.3 GFLOP for 64 environments, 5 us.
#include "kernels/common/launch.cuh"
#include "kernels/policy_step/cluster.cuh"
#include "kernels/policy_step/launch.h"
#include "kernels/policy_step/walk.cuh"

namespace dmamba::kernels {
namespace {

template <int kEnvs>
__global__ void __launch_bounds__(kPolicyThreads, 1)
    policy_step_kernel(const __grid_constant__ PolicyStepParams p,
                       const __grid_constant__ PolicyStepMemory memory) {
#if __CUDA_ARCH__ >= 900
  PolicyWalk<kEnvs>(p, memory, dynamic_shared<float, 128>()).run();
#endif
}

template <class F>
auto with_envs(int envs, F&& f) {
  switch (envs) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    default:
      return f(std::integral_constant<int, 8>{});
  }
}

PolicyStepMemory memory_of(const PolicyStepSizes& sizes, const PolicyStepPlan& plan) {
  return with_envs(plan.envs, [&](auto envs) {
    return policy_step_memory<envs()>(sizes, policy_step_layout(sizes, plan.ranks),
                                      policy_step_vectors(sizes, plan.ranks).size,
                                      kPolicyStepSharedBytes);
  });
}

/// Calls f(kernel, grid, bytes of shared memory, memory) for `clusters` clusters.
template <class F>
cudaError_t with_kernel(const PolicyStepSizes& sizes, const PolicyStepPlan& plan, int clusters,
                        F&& f) {
  return with_envs(plan.envs, [&](auto envs) {
    const PolicyStepMemory memory = memory_of(sizes, plan);
    return f(policy_step_kernel<envs()>, static_cast<unsigned>(clusters * plan.ranks),
             static_cast<size_t>(memory.bytes), memory);
  });
}

/// What a cluster takes, about, in microseconds: fitted to an H200's times with d_model 128 and
/// three layers, 0.73 million weights.
double time_of_cluster(const PolicyStepSizes& sizes, const PolicyStepPlan& plan) {
  const PolicyStepLayout layout = policy_step_layout(sizes, plan.ranks);
  const double size = static_cast<double>(layout.ranks * layout.rank_stride) / 0.73e6;
  return 2 + 8 * sizes.n_layer + size * (16 + 35.0 * plan.envs) / plan.ranks +
         2.3 * size * plan.envs;
}

}  // namespace

bool policy_step_runs() {
  int device = 0, bytes = 0;
  return compiled_for_clusters(policy_step_kernel<1>) && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         bytes >= kPolicyStepSharedBytes;
}

bool policy_step_fits(const PolicyStepSizes& s, const PolicyStepPlan& plan) {
  const int ranks = plan.ranks, groups = plan.envs == 8 ? 2 : 1;
  if (s.d_model % 32 != 0 || s.d_model < 32 || s.d_model > kPolicyWidest) return false;
  if (s.d_inner != 2 * s.d_model || (s.hidden != 0 && s.hidden != 4 * s.d_model)) return false;
  if (s.dt_rank < 1 || s.dt_rank > 2 * kPolicyStates) return false;
  if (ranks != 1 && ranks != 2 && ranks != 4 && ranks != 8) return false;
  // A stage's quads of columns for all groups of tokens are at most one for each thread.
  const int widest = s.d_model > 2 * s.d_inner / ranks ? s.d_model : 2 * s.d_inner / ranks;
  if (widest / 4 * groups > kPolicyThreads) return false;
  if (s.act_dim * s.d_model > kPolicySlot) return false;
  return memory_of(s, plan).slots >= 2;
}

cudaError_t policy_step_clusters(const PolicyStepSizes& sizes, const PolicyStepPlan& plan,
                                 int* clusters) {
  return with_kernel(sizes, plan, 1, [&](auto kernel, unsigned grid, size_t bytes, const auto&) {
    return with_clusters(kernel, plan.ranks, grid, kPolicyThreads, bytes, nullptr,
                         [&](const cudaLaunchConfig_t& config) {
                           return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
                         });
  });
}

cudaError_t plan_policy_step(const PolicyStepSizes& sizes, int num_envs, PolicyStepPlan* plan) {
  *plan = {0, 0};
  double shortest = 0;
  for (const int ranks : {1, 2, 4, 8}) {
    for (const int envs : {1, 2, 3, 4, 8}) {
      const PolicyStepPlan candidate{ranks, envs};
      if (!policy_step_fits(sizes, candidate)) continue;
      int at_once = 0;
      const cudaError_t error = policy_step_clusters(sizes, candidate, &at_once);
      if (error != cudaSuccess) return error;
      if (at_once == 0) continue;
      const int clusters = (num_envs + envs - 1) / envs;
      const double time = (clusters + at_once - 1) / at_once * time_of_cluster(sizes, candidate);
      if (shortest == 0 || time < shortest) {
        shortest = time;
        *plan = candidate;
      }
    }
  }
  return cudaSuccess;
}

cudaError_t launch_policy_step(const PolicyStepParams& p, cudaStream_t stream) {
  const PolicyStepPlan plan{p.layout.ranks, p.envs};
  if (!policy_step_fits(p.sizes, plan)) return cudaErrorInvalidValue;
  if (p.num_envs == 0) return cudaSuccess;
  const int clusters = (p.num_envs + p.envs - 1) / p.envs;
  return with_kernel(
      p.sizes, plan, clusters, [&](auto kernel, unsigned grid, size_t bytes, const auto& memory) {
        return launch_clusters(kernel, plan.ranks, grid, kPolicyThreads, bytes, stream, p, memory);
      });
}

}  // namespace dmamba::kernels
