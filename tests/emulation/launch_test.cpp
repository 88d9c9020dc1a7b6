// Launches: shared memory that is asked for, and code that was compiled for older devices.
#include "kernels/common/launch.cuh"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/policy_step/launch.h"
#include "kernels/weight_gradients/launch.h"

namespace {

using namespace dmamba::kernels;

/// Blocks of a cluster run side by side: each has a count of its own.
void count_blocks(int* counts) {
  if (threadIdx.x == 0) ++counts[blockIdx.x];
}

/// How often blocks have run.
struct Counts {
  std::vector<int> of_block = std::vector<int>(4);
  int* data() { return of_block.data(); }
  int sum() const { return std::accumulate(of_block.begin(), of_block.end(), 0); }
};

/// Kernels are said to be of `architecture` for a time.
class Compiled {
 public:
  explicit Compiled(int architecture) { say(architecture); }
  ~Compiled() { say(90); }
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;

 private:
  static void say(int architecture) {
    dmamba_said_architecture = architecture;
    known_kernels().by_device.clear();
  }
};

TEST(Launch, AsksForSharedMemoryButNeverForLess) {
  Counts counts;
  const auto launch = [&](size_t bytes) {
    return launch_kernel(count_blocks, 1, 32, bytes, nullptr, counts.data());
  };
  EXPECT_EQ(launch(200 * 1024), cudaSuccess);
  EXPECT_EQ(launch(100 * 1024), cudaSuccess);
  // Another thread, between its question and its launch.
  const cudaLaunchConfig_t config = launch_config(1, 32, 200 * 1024, nullptr);
  EXPECT_EQ(cudaLaunchKernelEx(&config, count_blocks, counts.data()), cudaSuccess);
  EXPECT_EQ(launch(228 * 1024), cudaErrorInvalidValue);
  EXPECT_EQ(launch(200 * 1024), cudaSuccess);
  EXPECT_EQ(counts.sum(), 4);
}

TEST(Launch, IsEarlyWhereTheCodeCanWait) {
  Counts counts;
  EXPECT_EQ(launch_early(count_blocks, 2, 32, 0, nullptr, counts.data()), cudaSuccess);
  EXPECT_TRUE(dmamba_launched_early);
  const Compiled old(80);
  EXPECT_EQ(launch_early(count_blocks, 2, 32, 0, nullptr, counts.data()), cudaSuccess);
  EXPECT_FALSE(dmamba_launched_early);
  EXPECT_EQ(counts.sum(), 4);
}

TEST(Launch, ClustersAreRefusedWhereTheCodeHasNone) {
  Counts counts;
  const auto launch = [&] {
    return launch_clusters(count_blocks, 2, 4, 32, 64 * 1024, nullptr, counts.data());
  };
  EXPECT_EQ(launch(), cudaSuccess);
  const Compiled old(80);
  EXPECT_EQ(launch(), cudaErrorInvalidDeviceFunction);
  EXPECT_EQ(counts.sum(), 4);
}

TEST(Launch, NoCodeAtAllIsANoAndLeavesNoErrorBehind) {
  const Compiled none(0);
  EXPECT_FALSE(weight_gradients_run());
  EXPECT_FALSE(policy_step_runs());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  Counts counts;
  EXPECT_EQ(launch_early(count_blocks, 1, 32, 0, nullptr, counts.data()),
            cudaErrorNoKernelImageForDevice);
  EXPECT_EQ(launch_clusters(count_blocks, 1, 1, 32, 0, nullptr, counts.data()),
            cudaErrorNoKernelImageForDevice);
  cudaGetLastError();
  EXPECT_EQ(counts.sum(), 0);
}

TEST(Launch, KernelsOfClustersSayWhetherTheyRun) {
  EXPECT_TRUE(weight_gradients_run());
  EXPECT_TRUE(policy_step_runs());
  std::vector<float> dy(128 * 128, 1.0F), x = dy, dweight = dy;
  const WeightGradient gradient{dy.data(), x.data(), dweight.data(), 128, 128, 128, 128, 128};
  const auto launch = [&] {
    return launch_weight_gradients(&gradient, 1, Storage::kFloat32, nullptr);
  };
  const Compiled old(80);
  EXPECT_FALSE(weight_gradients_run());
  EXPECT_FALSE(policy_step_runs());
  EXPECT_EQ(launch(), cudaErrorInvalidDeviceFunction);
  EXPECT_EQ(dweight[0], 1.0F);
}

}  // namespace
