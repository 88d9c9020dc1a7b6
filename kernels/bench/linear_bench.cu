// Checks and times the products beside a GELU alone, without torch:
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -I . kernels/linear/*.cu kernels/bench/linear_bench.cu
//        -o linear_bench
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

struct Kind {
  const char* name;
  bool bf16, gelu;
};
constexpr Kind kKinds[] = {{"tf32 gelu", false, true},
                           {"tf32 slope", false, false},
                           {"bf16 gelu", true, true},
                           {"bf16 slope", true, false}};

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
  DeviceArray parts{sizeof(float) * linear_parts(size.rows, size.n) * size.n};

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
    return kind.gelu ? launch_linear_gelu(params(), stream) : launch_linear_slope(params(), stream);
  }

  double product(int64_t row, int column) const {
    double sum = 0;
    for (int k = 0; k < size.k; ++k) {
      const int64_t at = kind.gelu ? int64_t{column} * size.k + k : int64_t{k} * size.n + column;
      sum += static_cast<double>(x.host[row * x_stride + k]) * weight.host[at];
    }
    return sum;
  }
};

/// Against double precision.
void check_one(const Size& size, const Kind& kind, cudaStream_t stream) {
  const Problem p{size, kind};
  const double limit = kind.bf16 ? 8e-3 : 1e-3;  // TF32 has 10 bits, bfloat16 7
  std::printf("%-10s %5lld x %4d x %3d:", kind.name, static_cast<long long>(size.rows), size.n,
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
      if (kind.gelu) {
        const double x = product + p.bias.host[c], phi = 0.5 * std::erfc(-x / std::sqrt(2.0));
        wanted.push_back(x * phi);
        slopes.push_back(phi + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0)));
      } else {
        wanted.push_back(product * p.slope.host[row * size.n + c]);
        totals[c] += wanted.back();
      }
    }
  }
  compare("out", out, wanted, limit);
  if (kind.gelu) {
    compare("slope", slope, slopes, 4 * limit);  // of products far larger than one
  } else {
    const int64_t count = linear_parts(size.rows, size.n);
    const std::vector<float> parts = to_host(p.parts, count * size.n, false);
    std::vector<float> sums(size.n);
    for (int64_t i = 0; i < count * size.n; ++i) sums[i % size.n] += parts[i];
    compare("sums", sums, totals, limit);
  }
  std::printf("\n");
}

int run_checks(bool small, cudaStream_t stream) {
  // Rows, columns and terms beside those of tiles and pieces; both tiles.
  std::vector<Size> sizes = {{1, 8, 8},     {31, 40, 136, 8}, {33, 72, 64, 16},
                             {65, 128, 40}, {200, 3208, 24},  {129, 6408, 40, 16}};
  if (!small) sizes.insert(sizes.end(), {{1000, 1000, 200}, {3840, 512, 128}, {3840, 128, 512}});
  for (const Kind& kind : kKinds) {
    for (const Size& size : sizes) check_one(size, kind, stream);
  }
  std::printf("%d checks failed\n", failures);
  return failures;
}

/// Those of a channel mixer of d_model 128, and of 256.
void run_times(cudaStream_t stream) {
  for (const int64_t rows : {3840, 19200, 23040}) {
    for (const int d_model : {128, 256}) {
      for (const Kind& kind : kKinds) {
        const Size size{rows, 4 * d_model, d_model};
        const Problem p{size, kind};
        const Times t = time_by_replay(stream, [&] { check(p.launch(stream), "run"); });
        const double numbers = static_cast<double>(rows) * (size.k + 2 * size.n);
        std::printf("%6lld x %4d x %3d %-10s %6.1f us (%.1f to %.1f), %.2f TB/s, %.0f TFLOP/s\n",
                    static_cast<long long>(rows), size.n, size.k, kind.name, t.median, t.low,
                    t.high, (kind.bf16 ? 2e-6 : 4e-6) * numbers / t.median,
                    2e-6 * static_cast<double>(rows) * size.n * size.k / t.median);
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
