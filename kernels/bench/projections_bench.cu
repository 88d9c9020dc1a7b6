// Checks and times the products between the convolution and the scan alone, without torch:
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -I . kernels/projections/*.cu
//        kernels/bench/projections_bench.cu -o projections_bench
//   ./projections_bench check | time | all
#include <cmath>
#include <cstring>

#include "kernels/bench/harness.cuh"
#include "kernels/projections/launch.h"

namespace dmamba::bench {
namespace {

using namespace kernels;

constexpr int kParts = 11;

struct Problem {
  int64_t rows;
  int inner, rank, width;
  bool bf16;
  int length = 15;  // of a sequence
  std::mt19937 random{29};
  Input u = random_input(random, rows* inner, bf16, -1, 1);
  Input ddelta = random_input(random, rows* inner, bf16, -1, 1);
  Input du = random_input(random, rows* inner, bf16, -1, 1);
  Input dprojected = random_input(random, rows* width, bf16, -1, 1);
  Input x_proj = random_input(random, int64_t{width} * inner, bf16, -0.1F, 0.1F);
  Input parts = random_input(random, kParts* rows*(width - rank), false, -0.3F, 0.3F);
  Input dt_proj = random_input(random, int64_t{inner} * rank, bf16, -0.3F, 0.3F);
  Input x = random_input(random, rows * 2 * inner, bf16, -1, 1);  // beside z
  Input taps = random_input(random, int64_t{inner} * 4, false, -1, 1);
  Input bias = random_input(random, inner, false, -1, 1);
  std::vector<char> mask = flags(8), starts = flags(1);
  DeviceArray device_mask = on_device(mask), device_starts = on_device(starts);
  DeviceArray projected{(bf16 ? 2 : 4) * static_cast<size_t>(rows * width)};
  DeviceArray delta{(bf16 ? 2 : 4) * static_cast<size_t>(rows * inner)};

  Storage storage() const { return bf16 ? Storage::kBFloat16 : Storage::kFloat32; }

  /// True for `eighths` of the tokens.
  std::vector<char> flags(unsigned eighths) {
    std::vector<char> v(static_cast<size_t>(rows));
    for (char& flag : v)
      flag = static_cast<char>(eighths >= 8 ? random() % 6 != 0 : random() % 8 < eighths);
    return v;
  }
  static DeviceArray on_device(const std::vector<char>& v) {
    DeviceArray array(v.size());
    check(cudaMemcpy(array.get(), v.data(), v.size(), cudaMemcpyHostToDevice), "copy");
    return array;
  }

  ProjectionsParams forward(bool convolves) const {
    ProjectionsParams p{rows,
                        inner,
                        rank,
                        width,
                        storage(),
                        x_proj.device.get(),
                        dt_proj.device.get(),
                        u.device.get(),
                        projected.get(),
                        delta.get(),
                        {}};
    if (convolves) {
      p.convolution = {x.device.get(),
                       2 * inner,
                       taps.device.get(),
                       bias.device.get(),
                       {device_mask.as<bool>()},
                       {device_starts.as<bool>()},
                       length};
    }
    return p;
  }
  /// u in double precision.
  std::vector<double> convolved() const {
    std::vector<double> result(static_cast<size_t>(rows * inner));
    for (int64_t r = 0; r < rows; ++r) {
      for (int k = 0; k < inner; ++k) {
        double a = bias.host[k];
        for (int64_t from = r; from > r - 4; --from) {
          if (mask[from] != 0)
            a += double{taps.host[k * 4 + 3 - (r - from)]} * x.host[from * 2 * inner + k];
          if (from % length == 0 || starts[from] != 0) break;
        }
        result[r * inner + k] = a / (1.0 + std::exp(-a));
      }
    }
    return result;
  }
  ProjectionsBackwardParams backward(int n_parts) const {
    return {rows,
            inner,
            rank,
            width,
            storage(),
            x_proj.device.get(),
            dt_proj.device.get(),
            ddelta.device.get(),
            dprojected.device.get(),
            du.device.get(),
            n_parts > 0 ? parts.device.as<float>() : nullptr,
            n_parts};
  }
};

float rounded(float x) { return __bfloat162float(__float2bfloat16(x)); }

void print_error(const char* what, const std::vector<float>& x,
                 const std::vector<double>& reference, double limit) {
  const double error = relative_error(x, reference);
  std::printf("  %-10s %.2e of %.2e%s\n", what, error, limit,
              within(error, limit) ? "" : "  FAILED");
}

/// The same in double precision; what lies in memory between two products is rounded.
void check_one(int64_t rows, int inner, int rank, int width, bool bf16, int n_parts,
               cudaStream_t stream) {
  const bool convolves = n_parts % 8 == 0;
  const double limit = bf16 ? 1e-2 : 1e-3, convolution_limit = bf16 ? limit : 2e-6;
  const Problem p{rows, inner, rank, width, bf16};
  check(launch_projections(p.forward(convolves), stream), "forward");
  check(launch_projections_backward(p.backward(n_parts), stream), "backward");
  check(cudaStreamSynchronize(stream), "run");
  std::printf("%s, %lld rows, %d of %d, %d, %d parts\n", bf16 ? "bf16" : "tf32",
              static_cast<long long>(rows), rank, width, inner, n_parts);
  const std::vector<float> projected = to_host(p.projected, rows * width, bf16);
  const std::vector<float> dprojected = to_host(p.dprojected.device, rows * width, bf16);
  const std::vector<float> u = to_host(p.u.device, rows * inner, bf16);
  if (convolves) print_error("u", u, p.convolved(), convolution_limit);
  std::vector<double> r_projected(rows * width), r_delta(rows * inner), r_dt(rows * rank),
      dt(rows * rank), r_du(rows * inner);
  std::vector<float> got_dt(rows * rank);
  for (int64_t r = 0; r < rows; ++r) {
    for (int c = 0; c < width; ++c) {
      for (int k = 0; k < inner; ++k) {
        r_projected[r * width + c] +=
            static_cast<double>(u[r * inner + k]) * p.x_proj.host[c * inner + k];
      }
    }
    for (int k = 0; k < inner; ++k) {
      for (int c = 0; c < rank; ++c) {
        const double w = p.dt_proj.host[k * rank + c];
        r_delta[r * inner + k] += projected[r * width + c] * w;
        r_dt[r * rank + c] += p.ddelta.host[r * inner + k] * w;
      }
      r_du[r * inner + k] = p.du.host[r * inner + k];
      for (int c = 0; c < width; ++c) {
        r_du[r * inner + k] +=
            static_cast<double>(dprojected[r * width + c]) * p.x_proj.host[c * inner + k];
      }
    }
    for (int c = 0; c < rank; ++c) got_dt[r * rank + c] = dprojected[r * width + c];
  }
  bool kept = true;
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t column = i % width - rank, columns = width - rank;
    if (column < 0) continue;
    float sum = n_parts > 0 ? 0.0F : p.dprojected.host[i];
    for (int n = 0; n < n_parts; ++n) {
      sum += p.parts.host[(n * rows + i / width) * columns + column];
    }
    kept = kept && dprojected[i] == (bf16 ? rounded(sum) : sum);
  }
  if (!kept) ++failures;
  print_error("projected", projected, r_projected, limit);
  print_error("delta", to_host(p.delta, rows * inner, bf16), r_delta, limit);
  print_error("d dt", got_dt, r_dt, limit);
  print_error(kept ? "du" : "du, dB and dC WRONG", to_host(p.du.device, rows * inner, bf16), r_du,
              limit);
}

void check_sizes(cudaStream_t stream) {
  for (const int64_t rows : {1, 45, 1024}) {
    for (const int n_parts : {0, 1, 8, kParts}) {
      for (const bool bf16 : {true, false}) {
        check_one(rows, 256, 8, 40, bf16, n_parts, stream);
        check_one(rows, 256, 16, 48, bf16, n_parts, stream);
      }
      check_one(rows, 512, 16, 48, true, n_parts, stream);
      check_one(rows, 512, 8, 24, true, n_parts, stream);
    }
  }
  std::printf("%d checks failed\n", failures);
}

/// The parts of eight blocks of the scan.
void time_one(int64_t rows, int inner, bool bf16, cudaStream_t stream) {
  const int rank = inner / 32;
  const Problem p{rows, inner, rank, rank + 32, bf16, 60};
  if (!projections_fit(rows, inner, rank, rank + 32, p.storage())) return;
  const auto time_forward = [&](bool convolves) {
    return time_by_replay(stream,
                          [&] { check(launch_projections(p.forward(convolves), stream), "run"); });
  };
  const Times forward = time_forward(false), convolved = time_forward(true);
  const Times backward = time_by_replay(
      stream, [&] { check(launch_projections_backward(p.backward(8), stream), "run"); });
  std::printf("%s %6lld rows, %d:", bf16 ? "bf16" : "tf32", static_cast<long long>(rows), inner);
  const auto print = [](const char* what, const Times& t) {
    std::printf(" %s %5.1f us (%.1f to %.1f)", what, t.median, t.low, t.high);
  };
  print("forward", forward), print("convolved", convolved), print("backward", backward);
  std::printf("\n");
}

int run(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "all";
  cudaStream_t stream = open_device();
  if (std::strcmp(what, "time") != 0) check_sizes(stream);
  if (std::strcmp(what, "check") != 0) {
    for (const int64_t rows : {480, 3840, 19200}) {
      for (const int inner : {256, 512}) {
        for (const bool bf16 : {true, false}) time_one(rows, inner, bf16, stream);
      }
    }
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace dmamba::bench

int main(int argc, char** argv) { return dmamba::bench::run(argc, argv); }
