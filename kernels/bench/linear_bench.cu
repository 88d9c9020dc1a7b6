// Checks and times products of activations and a weight alone, without torch:
//
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -I . kernels/linear/*.cu
//        kernels/bench/linear_bench.cu -o linear_bench
//   ./linear_bench check | small | time | all
//
// `small` checks the least sizes alone, for sanitizers and emulation.
#include <cmath>
#include <string>

#include "kernels/bench/harness.cuh"
#include "kernels/linear/launch.h"

namespace dmamba::bench {
namespace {

using namespace kernels;

/// `hopper`: of Hopper's own instructions.
struct Kind {
  const char* name;
  LinearKind of;
  bool bf16, hopper;

  bool gelu() const { return of == LinearKind::kGelu; }
  bool slope() const { return of == LinearKind::kSlope; }
  LinearTile tile(int64_t rows, int64_t n) const {
    return hopper ? hopper_linear_tile(rows, n) : linear_tile(rows, n);
  }
};
constexpr Kind kKinds[] = {{"tf32 gelu", LinearKind::kGelu, false, false},
                           {"tf32 slope", LinearKind::kSlope, false, false},
                           {"bf16 gelu", LinearKind::kGelu, true, false},
                           {"bf16 slope", LinearKind::kSlope, true, false},
                           {"tf32 hopper gelu", LinearKind::kGelu, false, true},
                           {"tf32 hopper slope", LinearKind::kSlope, false, true},
                           {"tf32 hopper", LinearKind::kProduct, false, true},
                           {"tf32 hopper by terms", LinearKind::kProductByTerms, false, true},
                           {"bf16 hopper gelu", LinearKind::kGelu, true, true},
                           {"bf16 hopper slope", LinearKind::kSlope, true, true},
                           {"bf16 hopper", LinearKind::kProduct, true, true},
                           {"bf16 hopper by terms", LinearKind::kProductByTerms, true, true}};

struct Size {
  int64_t rows;
  int n, k;
  int x_pad = 0;  // elements between rows
};

/// A problem on the device, with random inputs.
struct Problem {
  Size size;
  Kind kind;
  std::mt19937 random{23};
  int64_t x_stride = size.k + size.x_pad;
  Input x = random_input(random, size.rows* x_stride, kind.bf16, -1, 1);
  Input weight = random_input(random, int64_t{size.n} * size.k, kind.bf16, -0.3F, 0.3F);
  Input bias = random_input(random, size.n, false, -1, 1);
  Input slope = random_input(random, size.rows* size.n, kind.bf16, -1, 1);
  DeviceArray out{(kind.bf16 ? 2 : 4) * static_cast<size_t>(size.rows * size.n)};
  int64_t n_parts = linear_parts(size.rows, kind.tile(size.rows, size.n));
  DeviceArray parts{sizeof(float) * n_parts * size.n};

  LinearParams params() const {
    return {size.rows,
            size.n,
            size.k,
            kind.bf16 ? Storage::kBFloat16 : Storage::kFloat32,
            x.device.get(),
            x_stride,
            weight.device.get(),
            bias.device.as<float>(),
            out.get(),
            slope.device.get(),
            parts.as<float>()};
  }
  cudaError_t launch(cudaStream_t stream) const {
    if (kind.hopper) return launch_hopper_linear(params(), kind.of, stream);
    return kind.gelu() ? launch_linear_gelu(params(), stream)
                       : launch_linear_slope(params(), stream);
  }

  double product(int64_t row, int column) const {
    double sum = 0;
    for (int k = 0; k < size.k; ++k) {
      const int64_t at =
          weight_by_terms(kind.of) ? int64_t{k} * size.n + column : int64_t{column} * size.k + k;
      sum += static_cast<double>(x.host[row * x_stride + k]) * weight.host[at];
    }
    return sum;
  }
};

/// Against double precision.
void check_one(const Size& size, const Kind& kind, cudaStream_t stream) {
  const Problem p{size, kind};
  const double limit = kind.bf16 ? 8e-3 : 1e-3;  // TF32 has 10 bits, bfloat16 7
  std::printf("%-20s %5lld x %4d x %3d:", kind.name, static_cast<long long>(size.rows), size.n,
              size.k);
  if (!linear_fits(p.params())) {
    ++failures;
    std::printf(" does not fit FAILED\n");
    return;
  }
  check(p.launch(stream), "launch");
  check(cudaStreamSynchronize(stream), "run");
  const std::vector<float> out = to_host(p.out, size.rows * size.n, kind.bf16);
  const std::vector<float> slope = to_host(p.slope.device, size.rows * size.n, kind.bf16);
  std::vector<double> wanted, slopes, totals(size.n);
  for (int64_t row = 0; row < size.rows; ++row) {
    for (int c = 0; c < size.n; ++c) {
      const double product = p.product(row, c);
      if (kind.gelu()) {
        const double x = product + p.bias.host[c], phi = 0.5 * std::erfc(-x / std::sqrt(2.0));
        wanted.push_back(x * phi);
        slopes.push_back(phi + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0)));
      } else {
        wanted.push_back(kind.slope() ? product * p.slope.host[row * size.n + c] : product);
        totals[c] += wanted.back();
      }
    }
  }
  compare("out", out, wanted, limit);
  if (kind.gelu()) {
    compare("slope", slope, slopes, 4 * limit);  // of products far larger than one
  } else if (kind.slope()) {
    const std::vector<float> parts = to_host(p.parts, p.n_parts * size.n, false);
    std::vector<float> sums(size.n);
    for (int64_t i = 0; i < p.n_parts * size.n; ++i) sums[i % size.n] += parts[i];
    compare("sums", sums, totals, limit);
  }
  std::printf("\n");
}

int run_checks(bool small, cudaStream_t stream) {
  // Rows, columns and terms beside those of tiles and pieces; all tiles.
  std::vector<Size> sizes = {{1, 8, 8},       {31, 40, 136, 8}, {33, 72, 600, 16},
                             {65, 128, 40},   {200, 3208, 24},  {129, 6408, 232, 16},
                             {137, 3208, 232}};
  if (!small)
    sizes.insert(sizes.end(), {{1000, 1000, 200},
                               {3840, 512, 128},
                               {3840, 128, 512},
                               {3840, 320, 512},
                               {6400, 512, 512}});
  for (const Kind& kind : kKinds) {
    for (const Size& size : sizes) check_one(size, kind, stream);
  }
  std::printf("%d checks failed\n", failures);
  return failures;
}

void time_one(const Size& size, const Kind& kind, cudaStream_t stream) {
  const Problem p{size, kind};
  const Times t = time_by_replay(stream, [&] { check(p.launch(stream), "run"); });
  const int outputs = kind.gelu() || kind.slope() ? 2 : 1;
  const double numbers = static_cast<double>(size.rows) * (size.k + outputs * size.n);
  std::printf("%6lld x %4d x %4d %-20s %6.1f us (%.1f to %.1f), %.2f TB/s, %.0f TFLOP/s\n",
              static_cast<long long>(size.rows), size.n, size.k, kind.name, t.median, t.low, t.high,
              (kind.bf16 ? 2e-6 : 4e-6) * numbers / t.median,
              2e-6 * static_cast<double>(size.rows) * size.n * size.k / t.median);
}

/// Those of a model of d_model 128, and of 256.
void run_times(cudaStream_t stream) {
  for (const int64_t rows : {3840, 19200, 23040}) {
    for (const int d : {128, 256}) {
      for (const Kind& kind : kKinds) {
        time_one({rows, 4 * d, d}, kind, stream);
        if (kind.gelu() || kind.slope()) continue;
        for (const Size& size : {Size{rows, 2 * d, d}, {rows, d, 2 * d}, {rows, d, 4 * d}}) {
          time_one(size, kind, stream);
        }
      }
    }
  }
}

int run(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  cudaStream_t stream = open_device();
  if (what != "time" && run_checks(what == "small", stream) != 0) return 1;
  if (what == "time" || what == "all") run_times(stream);
  return 0;
}

}  // namespace
}  // namespace dmamba::bench

int main(int argc, char** argv) { return dmamba::bench::run(argc, argv); }
