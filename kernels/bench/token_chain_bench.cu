// Checks and times the token chain alone, without torch:
//
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -I . kernels/token_chain/*.cu
//        kernels/bench/token_chain_bench.cu -o token_chain_bench
//   ./token_chain_bench check | small | time | all | once forward|backward
//
// `small` leaves the largest check out, for sanitizers and emulation; `once` runs a direction once
// at 64 x 60 tokens, for a profiler.
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/bench/harness.cuh"
#include "kernels/bench/token_chain_reference.h"
#include "kernels/token_chain/launch.h"

namespace dmamba::bench {
namespace {

using namespace kernels;

constexpr int64_t kInner = 256, kHidden = 512;

/// A chain on the device, with random inputs; what is written begins as NaN.
struct Problem {
  int64_t rows, next;
  bool dropout;
  std::mt19937 random{23};
  Input y = random_input(random, rows* kInner, true, -1, 1);
  Input residual = random_input(random, rows* kChainWidth, false, -1, 1);
  Input out_proj = random_input(random, kInner* kChainWidth, true, -0.1F, 0.1F);
  Input first = random_input(random, kHidden* kChainWidth, true, -0.2F, 0.2F);
  Input second = random_input(random, kHidden* kChainWidth, true, -0.1F, 0.1F);
  Input in_proj =
      random_input(random, std::max<int64_t>(next, 64) * kChainWidth, true, -0.1F, 0.1F);
  Input first_bias = random_input(random, kHidden, false, -0.5F, 0.5F);
  Input second_bias = random_input(random, kChainWidth, false, -0.5F, 0.5F);
  Input norm_weights[2] = {random_input(random, kChainWidth, false, 0.5F, 1.5F),
                           random_input(random, kChainWidth, false, 0.5F, 1.5F)};
  Input norm_biases[2] = {random_input(random, kChainWidth, false, -0.5F, 0.5F),
                          random_input(random, kChainWidth, false, -0.5F, 0.5F)};
  int64_t out_width = next > 0 ? next : kChainWidth;
  Input dnext = random_input(random, rows* out_width, true, -1, 1);
  Input dsum = random_input(random, rows* kChainWidth, false, -1, 1);
  DeviceArray sums[2] = {floats(kChainWidth), floats(kChainWidth)};
  DeviceArray statistics[2] = {floats(2), floats(2)};
  DeviceArray normed[2] = {halves(kChainWidth), halves(kChainWidth)};
  DeviceArray hidden = halves(kHidden), slope = halves(kHidden), out = halves(out_width);
  DeviceArray dy = halves(kInner), dresidual = floats(kChainWidth), dhidden = halves(kHidden);
  DeviceArray dbranch[2] = {halves(kChainWidth), halves(kChainWidth)};
  DeviceArray parts{sizeof(float) *
                    static_cast<size_t>(token_chain_blocks(rows) * token_chain_columns(kHidden))};
  DeviceArray key{sizeof(int64_t)};

  Problem(int64_t rows, int64_t next, bool dropout) : rows(rows), next(next), dropout(dropout) {
    check(cudaMemset(key.get(), 5, sizeof(int64_t)), "memset");
  }
  DeviceArray floats(int64_t width) const {
    return DeviceArray(sizeof(float) * static_cast<size_t>(rows * width));
  }
  DeviceArray halves(int64_t width) const {
    return DeviceArray(2 * static_cast<size_t>(rows * width));
  }
  ChainWeights weights() const {
    return {out_proj.device.get(), first.device.get(), second.device.get(),
            next > 0 ? in_proj.device.get() : nullptr};
  }
  DropoutMask mask() const {
    return {dropout ? key.as<int64_t>() : nullptr, 429496730U, 1.0F / 0.9F, 0};
  }
  TokenChainParams forward() const {
    TokenChainParams p{rows, kInner, kHidden, next, weights(), {}, {}, {}, mask(),
                       {},   {},     {},      {},   {},        {}, {}, {}};
    for (int i = 0; i < 2; ++i) {
      p.norms[i] = {norm_weights[i].device.as<float>(), norm_biases[i].device.as<float>(), 1e-5F};
      p.sums[i] = sums[i].as<float>();
      p.statistics[i] = statistics[i].as<float>();
      p.normed[i] = next == 0 && i == 1 ? out.get() : normed[i].get();
    }
    p.first_bias = first_bias.device.as<float>();
    p.second_bias = second_bias.device.as<float>();
    p.y = y.device.get();
    p.residual = residual.device.as<float>();
    p.hidden = hidden.get();
    p.slope = slope.get();
    p.next = out.get();
    return p;
  }
  TokenChainBackwardParams backward() const {
    TokenChainBackwardParams p{};
    p.rows = rows;
    p.inner = kInner;
    p.hidden_width = kHidden;
    p.next_width = next;
    p.weights = weights();
    p.dropout = mask();
    p.dnext = dnext.device.get();
    p.dsum = dsum.device.as<float>();
    for (int i = 0; i < 2; ++i) {
      p.norm_weights[i] = norm_weights[i].device.as<float>();
      p.sums[i] = sums[i].as<float>();
      p.statistics[i] = statistics[i].as<float>();
      p.dbranch[i] = dbranch[i].get();
    }
    p.slope = slope.get();
    p.dy = dy.get();
    p.dresidual = dresidual.as<float>();
    p.dhidden = dhidden.get();
    p.parts = parts.as<float>();
    return p;
  }
};

/// Prints max|x - ref| / max|ref| of one result, which must stay below the limit of bfloat16.
void print_error(const char* what, const std::vector<float>& x,
                 const std::vector<double>& reference, double limit) {
  const double error = relative_error(x, reference);
  std::printf("  %-12s %.2e of %.2e%s\n", what, error, limit,
              within(error, limit) ? "" : "  FAILED");
}

void check_one(int64_t rows, int64_t next, bool dropout, cudaStream_t stream) {
  Problem p(rows, next, dropout);
  check(launch_token_chain(p.forward(), stream), "forward");
  check(launch_token_chain_backward(p.backward(), stream), "backward");
  check(cudaStreamSynchronize(stream), "run");
  std::printf("%lld rows, next %lld, dropout %d\n", static_cast<long long>(rows),
              static_cast<long long>(next), dropout);
  ChainReference r{rows, kChainWidth, kInner, kHidden, next, dropout ? 0.1 : 0.0};
  r.out_proj = p.out_proj.host;
  r.first = p.first.host;
  r.second = p.second.host;
  r.in_proj = p.in_proj.host;
  r.first_bias = p.first_bias.host;
  r.second_bias = p.second_bias.host;
  for (int i = 0; i < 2; ++i) {
    r.norm_weight[i] = p.norm_weights[i].host;
    r.norm_bias[i] = p.norm_biases[i].host;
  }
  r.key = 0x0505050505050505ULL;
  r.threshold = 429496730U;
  r.forward(p.y.host, p.residual.host);
  r.backward(p.dnext.host, p.dsum.host);
  constexpr double kLimit = 1e-2;
  print_error("sum1", to_host(p.sums[0], rows * kChainWidth, false), r.sum[0], 2e-6);
  print_error("normed1", to_host(p.normed[0], rows * kChainWidth, true), r.normed[0], kLimit);
  print_error("hidden", to_host(p.hidden, rows * kHidden, true), r.hidden, kLimit);
  print_error("slope", to_host(p.slope, rows * kHidden, true), r.slope, kLimit);
  print_error("sum2", to_host(p.sums[1], rows * kChainWidth, false), r.sum[1], kLimit);
  print_error(next > 0 ? "next" : "normed2", to_host(p.out, rows * p.out_width, true), r.out,
              kLimit);
  print_error("dbranch2", to_host(p.dbranch[1], rows * kChainWidth, true), r.dbranch[1], kLimit);
  print_error("dhidden", to_host(p.dhidden, rows * kHidden, true), r.dhidden, kLimit);
  print_error("dresidual", to_host(p.dresidual, rows * kChainWidth, false), r.dresidual, kLimit);
  print_error("dbranch1", to_host(p.dbranch[0], rows * kChainWidth, true), r.dresidual, kLimit);
  print_error("dy", to_host(p.dy, rows * kInner, true), r.dy, kLimit);
  const int64_t columns = token_chain_columns(kHidden), blocks = token_chain_blocks(rows);
  const std::vector<float> parts = to_host(p.parts, blocks * columns, false);
  std::vector<float> sums(static_cast<size_t>(columns));
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t c = 0; c < columns; ++c) sums[c] += parts[b * columns + c];
  }
  print_error("parameters", sums, r.parameter_sums, kLimit);
}

void time_all(cudaStream_t stream) {
  for (const int64_t rows : {480, 1920, 3840}) {
    for (const int64_t next : {512, 0}) {
      const Problem p(rows, next, true);
      const Times forward =
          time_by_replay(stream, [&] { check(launch_token_chain(p.forward(), stream), "run"); });
      const Times backward = time_by_replay(
          stream, [&] { check(launch_token_chain_backward(p.backward(), stream), "run"); });
      const double flop =
          2.0 * static_cast<double>(rows) * kChainWidth * (kInner + 2 * kHidden + next);
      std::printf(
          "%6lld rows, next %3lld: forward %6.1f us (%.1f to %.1f), backward %6.1f (%.1f to %.1f);"
          " %.0f and %.0f TFLOP/s\n",
          static_cast<long long>(rows), static_cast<long long>(next), forward.median, forward.low,
          forward.high, backward.median, backward.low, backward.high, flop / forward.median * 1e-6,
          flop / backward.median * 1e-6);
    }
  }
}

int run(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  cudaStream_t stream = open_device();
  if (what == "once") {
    const Problem p(3840, 512, true);
    if (argc > 2 && std::strcmp(argv[2], "backward") == 0) {
      check(launch_token_chain_backward(p.backward(), stream), "run");
    } else {
      check(launch_token_chain(p.forward(), stream), "run");
    }
    check(cudaStreamSynchronize(stream), "run");
    return 0;
  }
  if (what != "time") {
    for (const bool dropout : {false, true}) {
      check_one(100, 512, dropout, stream);
      check_one(1, 0, dropout, stream);
      check_one(1024, 0, dropout, stream);
      if (what != "small") check_one(3841, 512, dropout, stream);
    }
    std::printf("%d checks failed\n", failures);
  }
  if (what == "time" || what == "all") time_all(stream);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace dmamba::bench

int main(int argc, char** argv) { return dmamba::bench::run(argc, argv); }
