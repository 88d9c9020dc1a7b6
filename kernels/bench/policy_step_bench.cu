// Checks and times the recurrent policy's step alone, without torch:
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -I . kernels/policy_step/policy_step.cu
//        kernels/bench/policy_step_bench.cu -o policy_step_bench
//   ./policy_step_bench check | small | time | all | once ENVS
//
// `small` checks the least sizes alone, for sanitizers and emulation; `once` runs the step of ENVS
// environments by the plan for the device, for a profiler.
#include <cstring>

#include "kernels/bench/harness.cuh"
#include "kernels/bench/policy_step_reference.h"
#include "kernels/policy_step/launch.h"

namespace dmamba::bench {
namespace {

using namespace kernels;

DeviceArray on_device(const float* from, size_t count) {
  DeviceArray array(4 * count);
  check(cudaMemcpy(array.get(), from, 4 * count, cudaMemcpyHostToDevice), "copy");
  return array;
}

/// A model's step on the device. States begin as NaN: the first step must not read them.
struct Device {
  Device(const RandomModel& model, int num_envs, const PolicyStepPlan& plan)
      : sizes(model.sizes),
        envs(num_envs),
        packed(pack(model, plan.ranks)),
        time(on_device(model.time, size_t(sizes.max_timestep) * sizes.d_model)),
        seen(size_t(num_envs) * (sizes.state_dim + 3) * 4),
        actions(size_t(num_envs) * sizes.act_dim * 4),
        states(size_t(sizes.n_layer) * envs * kPolicyStateRows * sizes.d_inner * 4) {
    check(cudaMemset(actions.get(), 0, size_t(num_envs) * sizes.act_dim * 4), "memset");
    p.sizes = sizes;
    p.layout = policy_step_layout(sizes, plan.ranks);
    p.vectors = policy_step_vectors(sizes, plan.ranks);
    p.num_envs = num_envs;
    p.envs = plan.envs;
    p.packed = packed.as<float>();
    p.time = time.as<float>();
    p.seen = seen.as<float>();
    p.actions = actions.as<float>();
    p.states = states.as<float>();
  }

  static DeviceArray pack(const RandomModel& model, int ranks) {
    const std::vector<float> host = pack_policy_step(model.sizes, model.view, ranks);
    if (int64_t(host.size()) != policy_step_layout(model.sizes, ranks).size) {
      std::printf("FAILED: packed %zu floats\n", host.size());
    }
    return on_device(host.data(), host.size());
  }

  void see(const std::vector<float>& host) {
    check(cudaMemcpy(seen.get(), host.data(), 4 * host.size(), cudaMemcpyHostToDevice), "copy");
  }

  void step(cudaStream_t stream) const { check(launch_policy_step(p, stream), "launch"); }

  PolicyStepSizes sizes;
  int envs;
  DeviceArray packed, time, seen, actions, states;
  PolicyStepParams p{};
};

/// What environments show at step `index`: all begin at 0, some anew later.
std::vector<float> make_seen(const PolicyStepSizes& s, int num_envs, int index,
                             std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> seen;
  for (int env = 0; env < num_envs; ++env) {
    for (int i = 0; i < s.state_dim; ++i) seen.push_back(normal(random));
    const bool first = index == 0 || (env + index) % 3 == 0;
    seen.push_back(1.0F + 0.3F * normal(random));
    seen.push_back(first ? 0.0F : static_cast<float>(env % 90 + index));
    seen.push_back(first ? 1.0F : 0.0F);
  }
  return seen;
}

double error_of(const DeviceArray& array, const std::vector<double>& reference) {
  return relative_error(to_host(array, int64_t(reference.size()), false), reference);
}

std::vector<PolicyStepPlan> plans_for(const PolicyStepSizes& sizes, bool small = false) {
  std::vector<PolicyStepPlan> plans;
  for (const int ranks : {1, 2, 4, 8}) {
    for (const int envs : {1, 2, 3, 4, 8}) {
      if (small && (ranks == 2 || ranks == 8 || envs == 2 || envs == 4)) continue;
      if (policy_step_fits(sizes, {ranks, envs})) plans.push_back({ranks, envs});
    }
  }
  return plans;
}

int run_check(const PolicyStepSizes& sizes, int num_envs, bool small, cudaStream_t stream) {
  constexpr int kSteps = 4;
  const RandomModel model(sizes);
  PolicyStepReference reference(model, num_envs);
  std::mt19937 random(5);
  std::vector<std::vector<float>> seen;
  std::vector<std::vector<double>> actions;
  for (int i = 0; i < kSteps; ++i) {
    seen.push_back(make_seen(sizes, num_envs, i, random));
    reference.step(seen.back());
    actions.push_back(reference.actions);
  }
  int failures = 0;
  for (const PolicyStepPlan& plan : plans_for(sizes, small)) {
    Device device(model, num_envs, plan);
    double worst = 0;
    for (int i = 0; i < kSteps; ++i) {
      device.see(seen[size_t(i)]);
      device.step(stream);
      check(cudaStreamSynchronize(stream), "step");
      worst = worse(worst, error_of(device.actions, actions[size_t(i)]));
    }
    const double states = error_of(device.states, reference.states);
    const bool passed = worst < 1e-5 && states < 1e-5;
    std::printf(
        "d %3d layers %d %s states %3d, %3d environments, %d x %d: actions %.1e states %.1e%s\n",
        sizes.d_model, sizes.n_layer, sizes.hidden > 0 ? "mlp " : "none", sizes.state_dim, num_envs,
        plan.ranks, plan.envs, worst, states, passed ? "" : "  FAILED");
    failures += passed ? 0 : 1;
  }
  return failures;
}

int run_checks(bool small, cudaStream_t stream) {
  int failures = 0;
  failures += run_check(sizes_of(32, 1, true, 3, 1), 5, small, stream);
  failures += run_check(sizes_of(64, 2, false, 17, 6), 13, small, stream);
  if (!small) {
    for (const int envs : {1, 3, 64, 200}) {
      failures += run_check(sizes_of(128, 3, true, 11, 3), envs, small, stream);
    }
    failures += run_check(sizes_of(96, 4, true, 376, 17), 13, small, stream);
    failures += run_check(sizes_of(160, 2, true, 111, 8), 7, small, stream);
    failures += run_check(sizes_of(256, 3, true, 45, 24), 9, small, stream);
  }
  std::printf("%d failed\n", failures);
  return failures;
}

void run_times(cudaStream_t stream) {
  const PolicyStepSizes sizes = sizes_of(128, 3, true, 11, 3);
  const RandomModel model(sizes);
  std::mt19937 random(5);
  std::printf("d_model 128, 3 layers; plans are blocks of a cluster x environments of a cluster\n");
  for (const int num_envs : {1, 8, 64, 132, 512}) {
    PolicyStepPlan chosen{};
    check(plan_policy_step(sizes, num_envs, &chosen), "plan");
    for (const PolicyStepPlan& plan : plans_for(sizes)) {
      if (plan.envs > num_envs) continue;
      Device device(model, num_envs, plan);
      device.see(make_seen(sizes, num_envs, 1, random));
      int at_once = 0;
      check(policy_step_clusters(sizes, plan, &at_once), "clusters");
      const Times times = time_by_replay(stream, [&] { device.step(stream); });
      const int clusters = (num_envs + plan.envs - 1) / plan.envs;
      const double bytes =
          4.0 * clusters * plan.ranks * static_cast<double>(device.p.layout.rank_stride);
      std::printf(
          "%4d environments, %d x %d: %7.1f us (%6.1f %6.1f), %5.0f GB/s of weights, %3d clusters, "
          "%3d at once%s\n",
          num_envs, plan.ranks, plan.envs, times.median, times.low, times.high,
          bytes / times.median * 1e-3, clusters, at_once,
          plan.ranks == chosen.ranks && plan.envs == chosen.envs ? "  <- planned" : "");
    }
  }
}

void run_once(int num_envs, cudaStream_t stream) {
  const PolicyStepSizes sizes = sizes_of(128, 3, true, 11, 3);
  PolicyStepPlan plan{};
  check(plan_policy_step(sizes, num_envs, &plan), "plan");
  const RandomModel model(sizes);
  std::mt19937 random(5);
  Device device(model, num_envs, plan);
  device.see(make_seen(sizes, num_envs, 1, random));
  for (int i = 0; i < 3; ++i) device.step(stream);
  check(cudaStreamSynchronize(stream), "step");
}

}  // namespace
}  // namespace dmamba::bench

int main(int argc, char** argv) {
  using namespace dmamba::bench;
  const char* what = argc > 1 ? argv[1] : "all";
  const cudaStream_t stream = open_device();
  if (std::strcmp(what, "once") == 0) {
    run_once(argc > 2 ? std::atoi(argv[2]) : 64, stream);
    return 0;
  }
  int failures = 0;
  const bool small = std::strcmp(what, "small") == 0;
  if (std::strcmp(what, "time") != 0) failures = run_checks(small, stream);
  if (std::strcmp(what, "check") != 0 && !small) run_times(stream);
  return failures == 0 ? 0 : 1;
}
