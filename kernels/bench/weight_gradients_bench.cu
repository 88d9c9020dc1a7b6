// Checks and times the gradients of weights alone, without torch:
//
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -I .
//        kernels/weight_gradients/*.cu kernels/bench/weight_gradients_bench.cu
//        -o weight_gradients_bench
//   ./weight_gradients_bench check | small | time | all | once ROW
//
// `small` checks the least sizes alone, for sanitizers and emulation; `once` runs row ROW of the
// table once, for a profiler.
#include <cmath>
#include <cstring>

#include "kernels/bench/harness.cuh"
#include "kernels/weight_gradients/launch.h"

namespace dmamba::bench {
namespace {

using namespace kernels;

struct Size {
  int64_t rows;
  int n, m;
  int dy_pad = 0, x_pad = 0;  // elements between rows
};

/// The kernels: bfloat16 with Hopper's own instructions, bfloat16, TF32 with them, TF32.
enum class Kind { kHopper, kBFloat16, kHopperTf32, kTf32 };
constexpr Kind kKinds[] = {Kind::kHopper, Kind::kBFloat16, Kind::kHopperTf32, Kind::kTf32};
constexpr const char* kKindNames[] = {"bf16 hopper", "bf16", "tf32 hopper", "tf32"};

const char* name_of(Kind kind) { return kKindNames[static_cast<int>(kind)]; }

/// A problem on the device, with random inputs; what is written begins as NaN.
struct Problem {
  Size size;
  Kind kind;
  std::mt19937 random{17};
  bool bf16 = kind == Kind::kHopper || kind == Kind::kBFloat16;
  int64_t dy_stride = size.n + size.dy_pad, x_stride = size.m + size.x_pad;
  Input dy = random_input(random, size.rows* dy_stride, bf16, -1, 1);
  Input x = random_input(random, size.rows* x_stride, bf16, -1, 1);
  DeviceArray dweight{sizeof(float) * size.n * size.m};

  WeightGradient params() const {
    return {dy.device.get(), x.device.get(), dweight.as<float>(), size.rows, dy_stride, x_stride,
            size.n,          size.m};
  }
  Storage storage() const { return bf16 ? Storage::kBFloat16 : Storage::kFloat32; }
};

std::vector<WeightGradient> params_of(const std::vector<Problem>& problems) {
  std::vector<WeightGradient> list;
  for (const Problem& p : problems) list.push_back(p.params());
  return list;
}

std::vector<Problem> make_problems(const std::vector<Size>& sizes, Kind kind) {
  std::vector<Problem> problems;
  for (const Size& size : sizes) problems.push_back({size, kind});
  return problems;
}

void launch(const std::vector<Problem>& problems, cudaStream_t stream) {
  const std::vector<WeightGradient> list = params_of(problems);
  const auto count = static_cast<int>(list.size());
  const Kind kind = problems[0].kind;
  check(kind == Kind::kHopper ? launch_hopper_weight_gradients(list.data(), count, stream)
        : kind == Kind::kHopperTf32
            ? launch_hopper_tf32_weight_gradients(list.data(), count, stream)
            : launch_weight_gradients(list.data(), count, problems[0].storage(), stream),
        "launch");
}

/// max|x - ref| / max|ref| against double precision, over a sample of the outputs.
double error_of(const Problem& p) {
  const std::vector<float> out = to_host(p.dweight, int64_t{p.size.n} * p.size.m, false);
  const int64_t count = int64_t{p.size.n} * p.size.m, stride = std::max<int64_t>(1, count / 2011);
  double worst = 0, largest = 0;
  for (int64_t i = 0; i < count; i += stride) {
    double sum = 0;
    for (int64_t row = 0; row < p.size.rows; ++row) {
      sum += static_cast<double>(p.dy.host[row * p.dy_stride + i / p.size.m]) *
             p.x.host[row * p.x_stride + i % p.size.m];
    }
    worst = worse(worst, std::abs(sum - out[i]));
    largest = std::max(largest, std::abs(sum));
  }
  return worst / std::max(largest, 1e-30);
}

/// The weights of `layers` layers: in_proj, x_proj, dt_proj, out_proj, and the two of the mixer.
std::vector<Size> model(int layers, int d_model, int64_t rows) {
  const int inner = 2 * d_model, dt_rank = d_model / 16, projected = dt_rank + 32;
  std::vector<Size> sizes;
  for (int i = 0; i < layers; ++i) {
    sizes.insert(sizes.end(), {{rows, 2 * inner, d_model},
                               {rows, projected, inner},
                               {rows, inner, dt_rank, 0, projected - dt_rank},
                               {rows, d_model, inner},
                               {rows, 4 * d_model, d_model},
                               {rows, d_model, 4 * d_model}});
  }
  return sizes;
}

int run_checks(bool small, cudaStream_t stream) {
  std::vector<std::vector<Size>> lists = {
      {{1, 8, 8}, {31, 128, 136}, {33, 136, 128, 8, 16}, {1000, 40, 8}, {2000, 1, 3, 7, 5}},
      {{129, 200, 300, 0, 4}}};
  if (!small) {
    lists.insert(lists.end(),
                 {model(3, 128, 3840), model(1, 256, 60), std::vector<Size>(100, {300, 24, 16})});
  }
  const int repetitions = small ? 1 : 20;
  int failures = 0;
  for (const Kind kind : kKinds) {
    const bool tf32 = kind == Kind::kTf32 || kind == Kind::kHopperTf32;
    const double bound = tf32 ? 1e-3 : 4e-6;  // TF32 has 10 bits
    for (const auto& sizes : lists) {
      const std::vector<Problem> problems = make_problems(sizes, kind);
      for (const Problem& p : problems) {
        if (!weight_gradient_fits(p.params(), p.storage())) {
          std::printf("FAILED: %d x %d cannot be read\n", p.size.n, p.size.m);
          ++failures;
        }
      }
      launch(problems, stream);
      check(cudaStreamSynchronize(stream), "launch");
      double worst = 0;
      for (const Problem& p : problems) worst = worse(worst, error_of(p));
      std::vector<std::vector<float>> first;
      for (const Problem& p : problems) {
        first.push_back(to_host(p.dweight, int64_t{p.size.n} * p.size.m, false));
      }
      bool same = true;
      for (int i = 0; i < repetitions; ++i) launch(problems, stream);
      check(cudaStreamSynchronize(stream), "launch");
      for (size_t i = 0; i < problems.size(); ++i) {
        same = same && first[i] == to_host(problems[i].dweight, first[i].size(), false);
      }
      for (const Problem& p : problems) {
        const double error = error_of(p);
        if (error <= bound) continue;
        std::printf("  %d x %d: error %.1e\n", p.size.n, p.size.m, error);
      }
      const bool passed = same && worst <= bound;
      std::printf("%-11s %3zu gradients, %lld rows: error %.1e%s%s\n", name_of(kind), sizes.size(),
                  static_cast<long long>(sizes[0].rows), worst, same ? "" : ", not the same bits",
                  passed ? "" : "  FAILED");
      failures += passed ? 0 : 1;
    }
  }
  std::printf("%d failed\n", failures);
  return failures;
}

struct Row {
  const char* name;
  std::vector<Size> sizes;
  Kind kind;
};

std::vector<Row> rows() {
  std::vector<Row> list;
  for (const Kind kind : kKinds) {
    list.push_back({"3 layers, 128, 64 x 60", model(3, 128, 3840), kind});
    list.push_back({"1 layer, 128, 64 x 60", model(1, 128, 3840), kind});
    list.push_back({"3 layers, 256, 64 x 60", model(3, 256, 3840), kind});
    list.push_back({"1 layer, 256, 64 x 60", model(1, 256, 3840), kind});
    list.push_back({"3 layers, 128, 64 x 300", model(3, 128, 19200), kind});
    list.push_back({"6 layers, 128, 256 x 90", model(6, 128, 23040), kind});
  }
  return list;
}

void run_times(cudaStream_t stream) {
  std::printf("%-26s %11s %9s %18s %9s\n", "", "", "us", "(quartiles)", "TFLOP/s");
  for (const Row& row : rows()) {
    const std::vector<Problem> problems = make_problems(row.sizes, row.kind);
    const Times times = time_by_replay(stream, [&] { launch(problems, stream); });
    double flops = 0;
    for (const Size& s : row.sizes) flops += 2.0 * static_cast<double>(s.rows) * s.n * s.m;
    std::printf("%-26s %11s %9.1f (%7.1f %7.1f) %9.0f\n", row.name, name_of(row.kind), times.median,
                times.low, times.high, flops / times.median * 1e-6);
  }
}

void run_once(int index, cudaStream_t stream) {
  const std::vector<Row> list = rows();
  const Row& row = list[static_cast<size_t>(index) % list.size()];
  const std::vector<Problem> problems = make_problems(row.sizes, row.kind);
  launch(problems, stream);
  check(cudaStreamSynchronize(stream), "launch");
}

}  // namespace
}  // namespace dmamba::bench

int main(int argc, char** argv) {
  using namespace dmamba::bench;
  const char* what = argc > 1 ? argv[1] : "all";
  const cudaStream_t stream = open_device();
  if (std::strcmp(what, "once") == 0) {
    run_once(argc > 2 ? std::atoi(argv[2]) : 0, stream);
    return 0;
  }
  int failures = 0;
  const bool small = std::strcmp(what, "small") == 0;
  if (std::strcmp(what, "time") != 0) failures = run_checks(small, stream);
  if (std::strcmp(what, "check") != 0 && !small) run_times(stream);
  return failures == 0 ? 0 : 1;
}
