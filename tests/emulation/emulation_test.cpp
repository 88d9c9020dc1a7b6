// What tests of kernels rest on: waits and exchanges of threads, work beside them, and the faults
// that end a program.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <vector>

#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tensor_map.cuh"
#include "kernels/common/wgmma.cuh"
#include "tests/emulation/arrays.h"

#if defined(__SANITIZE_THREAD__)
#define DMAMBA_TSAN
#elif defined(__SANITIZE_ADDRESS__)
#define DMAMBA_ASAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define DMAMBA_TSAN
#elif __has_feature(address_sanitizer)
#define DMAMBA_ASAN
#endif
#endif

namespace {

using namespace dmamba::kernels;
using dmamba::emulation::Setting;
using Body = std::function<void()>;

void run_body(const Body* body) { (*body)(); }

/// Runs `body` for the threads of a grid.
void run(unsigned blocks, unsigned threads, const Body& body, size_t bytes = 0,
         unsigned cluster = 1) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  const cudaLaunchConfig_t config{blocks, threads, bytes, nullptr, &attribute, 1};
  ASSERT_EQ(cudaLaunchKernelEx(&config, run_body, &body), cudaSuccess);
}

class EachOrder : public testing::TestWithParam<const char*> {
  const Setting order_{"DMAMBA_EMULATION_ORDER", GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Emulation, EachOrder, testing::Values("forward", "backward", "1", "2"));

TEST_P(EachOrder, LanesExchangeValues) {
  std::vector<float> sums(96);
  std::vector<int> ups(96), odd(96), counts(96);
  run(1, 96, [&] {
    const int thread = static_cast<int>(threadIdx.x);
    float sum = static_cast<float>(thread);
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0U, sum, lanes);
    sums[thread] = sum;
    ups[thread] = __shfl_up_sync(~0U, thread, 3);
    odd[thread] = __ballot_sync(~0U, thread % 2) == 0xAAAAAAAAU && !__all_sync(~0U, thread % 2) &&
                  __any_sync(~0U, thread % 32 == 7) && !__any_sync(~0U, thread < 0);
    counts[thread] = static_cast<int>(__reduce_add_sync(~0U, 2));
  });
  for (int i = 0; i < 96; ++i) {
    const int warp = i / 32;
    EXPECT_EQ(sums[i], 32.0F * 32 * warp + 31 * 16);
    EXPECT_EQ(ups[i], i % 32 < 3 ? i : i - 3);
    EXPECT_TRUE(odd[i]);
    EXPECT_EQ(counts[i], 64);
  }
}

TEST_P(EachOrder, BlocksWaitForThoseThatHaveNotReturned) {
  std::vector<int> values(3 * 64), counts(3 * 64);
  run(3, 64, [&] {
    __shared__ int shared[64];
    const int thread = static_cast<int>(threadIdx.x),
              at = static_cast<int>(blockIdx.x) * 64 + thread;
    shared[thread] = at;
    counts[at] = __syncthreads_count(thread < 5);
    if (thread >= 32) return;
    values[at] = shared[thread + 32];
    __syncthreads();  // 32 have returned
    shared[thread] = -at;
    __syncthreads();
    values[at + 32] = shared[31 - thread];
  });
  for (int at = 0; at < 3 * 64; ++at) {
    const int block = at / 64 * 64, thread = at % 64;
    EXPECT_EQ(values[at], thread < 32 ? at + 32 : -(block + 31 - (thread - 32)));
    EXPECT_EQ(counts[at], 5);
  }
}

TEST_P(EachOrder, SomeThreadsMeetAtANamedBarrier) {
  std::vector<int> values(64);
  run(1, 128, [&] {
    __shared__ int shared[64];
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= 64) return;
    shared[thread] = thread;
    wait_for_threads<3>(64);
    values[thread] = shared[63 - thread];
  });
  for (int i = 0; i < 64; ++i) EXPECT_EQ(values[i], 63 - i);
}

TEST_P(EachOrder, BlocksOfAClusterReadEachOther) {
  std::vector<int> values(8);
  run(
      8, 32,
      [&] {
        const auto cluster = cooperative_groups::this_cluster();
        int* mine = dynamic_shared<int>();
        if (threadIdx.x == 0) *mine = static_cast<int>(blockIdx.x);
        cluster.sync();
        const int other = dmamba::emulation::block_rank() ^ 1;
        if (threadIdx.x == 0) values[blockIdx.x] = *cluster.map_shared_rank(mine, other);
        cluster.sync();
      },
      sizeof(int), 4);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(values[i], i ^ 1);
}

#ifndef DMAMBA_TSAN
TEST(Emulation, MemoryOfABlockThatHasReturnedIsNobodys) {
  const Setting order("DMAMBA_EMULATION_ORDER", "backward");
  float kept = 0, left = 0;
  run(
      2, 1,
      [&] {
        const auto cluster = cooperative_groups::this_cluster();
        float* mine = dynamic_shared<float>();
        *mine = 5;
        cluster.sync();
        if (blockIdx.x == 0) return;
        kept = *cluster.map_shared_rank(mine, 1);
        left = *cluster.map_shared_rank(mine, 0);
      },
      sizeof(float), 2);
  EXPECT_EQ(kept, 5);
  EXPECT_TRUE(std::isnan(left));
}
#endif

TEST(Emulation, SharedMemoryAndCopiesOnTheirWayAreNaN) {
  const Setting late("DMAMBA_EMULATION_ASYNC", "late");
  alignas(16) const float from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  float before = 0, sent = 0, first = 0, last = 0, missing = 1;
  run(
      1, 1,
      [&] {
        float* to = dynamic_shared<float>();
        before = to[0];
        to[0] = 9;
        copy_async(to, from, 16);
        commit_copies();
        copy_async(to + 4, from + 4, 8);
        commit_copies();
        sent = to[0];
        wait_for_copies<1>();
        first = to[3];
        last = to[4];
        wait_for_copies<0>();
        missing = to[6];
      },
      32);
  EXPECT_TRUE(std::isnan(before) && std::isnan(sent) && std::isnan(last));
  EXPECT_EQ(first, 4);
  EXPECT_EQ(missing, 0);
}

TEST_P(EachOrder, PanelsAndTheirProducts) {
  constexpr int kRows = 100, kColumns = 72, kOut = 64;
  std::vector<__nv_bfloat16> a(kRows * kColumns);
  for (int i = 0; i < kRows * kColumns; ++i) a[i] = static_cast<float>(i * 7 % 13 - 6);
  std::vector<float> products(kOut * 32);
  struct Memory {
    alignas(1024) unsigned char a[64 * 128], b[32 * 128];
    uint64_t arrived;
  };
  run(
      1, 128,
      [&] {
        Memory& memory = *dynamic_shared<Memory, 1024>();
        CUtensorMap of_a, of_b;
        ASSERT_EQ(make_tensor_map(of_a, a.data(), kRows, kColumns, 64), cudaSuccess);
        ASSERT_EQ(make_tensor_map(of_b, a.data(), kRows, kColumns, 32), cudaSuccess);
        const uint32_t arrived = shared_address(&memory.arrived);
        if (threadIdx.x == 0) {
          make_barrier(arrived);
          expect_bytes(arrived, sizeof memory.a + sizeof memory.b);
          load_panel(shared_address(memory.a), of_a, 8, 50, arrived);
          load_panel(shared_address(memory.b), of_b, 8, 0, arrived);
        }
        __syncthreads();
        wait_for_barrier(arrived, 0);
        float sums[4][4];
        for (int k = 0; k < 4; ++k) {
          multiply_panels<false>(sums, panel_descriptor(shared_address(memory.a) + k * 32),
                                 panel_descriptor(shared_address(memory.b) + k * 32), k > 0);
        }
        commit_products();
        wait_for_products<0>(sums);
        const int lane = static_cast<int>(threadIdx.x) % 32,
                  warp = static_cast<int>(threadIdx.x) / 32;
        for (int j = 0; j < 4; ++j) {
          for (int e = 0; e < 4; ++e) {
            const int row = warp * 16 + lane / 4 + e / 2 * 8, column = j * 8 + lane % 4 * 2 + e % 2;
            products[row * 32 + column] = sums[j][e];
          }
        }
      },
      sizeof(Memory));
  for (int row = 0; row < kOut; ++row) {
    for (int column = 0; column < 32; ++column) {
      float sum = 0;
      for (int k = 0; k < 64; ++k) {
        const bool exists = row + 50 < kRows;
        sum += exists ? a[(row + 50) * kColumns + 8 + k] * a[column * kColumns + 8 + k] : 0.0F;
      }
      ASSERT_EQ(products[row * 32 + column], sum) << row << ", " << column;
    }
  }
}

TEST(Emulation, MuchSharedMemoryHasToBeAskedFor) {
  const Body nothing = [] {};
  const auto launch = [&](size_t bytes) {
    const cudaLaunchConfig_t config = launch_config(1, 32, bytes, nullptr);
    return cudaLaunchKernelEx(&config, run_body, &nothing);
  };
  const auto ask = [](int bytes) {
    return cudaFuncSetAttribute(run_body, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  EXPECT_EQ(launch(48 * 1024), cudaSuccess);
  EXPECT_EQ(launch(48 * 1024 + 1), cudaErrorInvalidValue);
  EXPECT_EQ(ask(227 * 1024), cudaSuccess);
  EXPECT_EQ(launch(227 * 1024), cudaSuccess);
  EXPECT_EQ(ask(227 * 1024 + 1), cudaErrorInvalidValue);
}

TEST(Emulation, NumbersAreRoundedToNearestEven) {
  EXPECT_EQ(__float2bfloat16_rn(1.00390625F).bits, 0x3F80);  // a tie
  EXPECT_EQ(__float2bfloat16_rn(1.01171875F).bits, 0x3F82);
  EXPECT_EQ(__float2bfloat16_rn(NAN).bits, 0x7FFF);
  EXPECT_EQ(to_tf32(1.0F + 0x1p-11F), to_tf32(1.0F + 0x1p-10F));  // a tie, away from zero
  EXPECT_TRUE(std::isnan(__uint_as_float(to_tf32(__uint_as_float(~0U)))));
  const float halves[][2] = {{1.00048828125F, 1},
                             {1.00146484375F, 1.001953125F},
                             {0x1.8p-25F, 0x1p-24F},
                             {0x1p-25F, 0},
                             {0x1.ffcp-15F, 0x1p-14F},
                             {65519, 65504},
                             {65520, INFINITY},
                             {-3.14159F, -3.140625F},
                             {0x1.ff8p-15F, 0x1.ff8p-15F},
                             {0, 0}};
  for (const auto& [value, half] : halves) {
    EXPECT_EQ(__half22float2(__floats2half2_rn(value, 1)).x, half) << value;
  }
  EXPECT_TRUE(std::isnan(__half22float2(__floats2half2_rn(1, NAN)).y));
  EXPECT_EQ(exp2_fast(-127.0F), 0.0F);
}

TEST(Emulation, ResultsOfARaceDependOnTheOrder) {
  const auto last_of = [](const char* order) {
    const Setting setting("DMAMBA_EMULATION_ORDER", order);
    int last = -1;
    run(1, 32, [&] { last = static_cast<int>(threadIdx.x); });
    return last;
  };
#ifndef DMAMBA_TSAN
  EXPECT_EQ(last_of("forward"), 31);
  EXPECT_EQ(last_of("backward"), 0);
#else
  constexpr int kRaces = 66;  // ThreadSanitizer's exit status
  EXPECT_EXIT((last_of("forward"), std::exit(0)), testing::ExitedWithCode(kRaces), "data race");
#endif
}

TEST(EmulationDeathTest, WhatADeviceWouldNotRun) {
  const auto thread = [] { return static_cast<int>(threadIdx.x); };
  EXPECT_DEATH(run(1, 32,
                   [&] {
                     if (thread() < 16) {
                       __syncwarp();
                     } else {
                       __ballot_sync(~0U, 1);
                     }
                   }),
               "lanes of a warp wait at different places");
  EXPECT_DEATH(run(1, 32,
                   [&] {
                     if (thread() == 3) return;
                     __syncwarp();
                   }),
               "returns while lanes of its warp wait|which has returned");
  EXPECT_DEATH(run(1, 64, [&] { wait_for_threads<1>(96); }), "block 0: all threads wait, one of");
  EXPECT_DEATH(run(1, 32, [&] { __shfl_xor_sync(0xFFFFU, 1, 1); }), "only whole warps");
  EXPECT_DEATH(run(1, 2048, [] {}), "a block of 2048 threads");
  EXPECT_DEATH(run(6, 32, [] {}, 0, 4), "clusters of 4 blocks in a grid of 6");
  EXPECT_DEATH(run(
                   1, 1, [&] { copy_async(dynamic_shared<float>() + 1, nullptr, 0); }, 32),
               "a copy of 16 bytes that is not aligned");
  EXPECT_DEATH(run(
                   1, 1, [&] { arrive(shared_address(dynamic_shared<uint64_t>())); }, 32),
               "a barrier that nobody has made");
}

#ifndef DMAMBA_ASAN
TEST(Emulation, SharedVariablesAreNaNInEachBlock) {
  std::vector<float> values(3);
  run(3, 1, [&] {
    __shared__ float shared;
    values[blockIdx.x] = shared;
    shared = 1;
  });
  for (const float value : values) EXPECT_TRUE(std::isnan(value));
}

#ifndef DMAMBA_TSAN  // to which it is a race
TEST(EmulationDeathTest, ASharedVariableInACluster) {
  float sum = 0;
  const auto body = [&] {
    __shared__ float shared;
    shared = static_cast<float>(blockIdx.x);
    __syncthreads();
    sum += shared;
  };
  EXPECT_DEATH(run(2, 1, body, 0, 2), "a __shared__ variable in a cluster");
}
#endif
#endif

TEST(EmulationDeathTest, SettingsThatDoNotExist) {
  {
    const Setting order("DMAMBA_EMULATION_ORDER", "sideways");
    EXPECT_DEATH(run(1, 1, [] {}), "must be forward, backward or a number, got 'sideways'");
  }
  const Setting async("DMAMBA_EMULATION_ASYNC", "never");
  EXPECT_DEATH(run(1, 1, [] {}), "must be late or early, got 'never'");
}

#ifdef DMAMBA_ASAN
TEST(EmulationDeathTest, MemoryBeyondTheBlocks) {
  EXPECT_DEATH(run(1, 1, [] { dynamic_shared<float>()[8] = 1; }, 32), "use-after-poison");
}
#endif

}  // namespace
