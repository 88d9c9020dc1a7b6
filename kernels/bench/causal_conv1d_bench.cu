// Checks and times the causal convolution alone, without torch:
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -I . kernels/causal_conv1d/*.cu
//        kernels/bench/causal_conv1d_bench.cu -o conv_bench
//   ./conv_bench check | small | time | all | once ROW
//
// `small` leaves checks of many rows out, for sanitizers and emulation; `once` runs row ROW of the
// table once forward and once backward, for a profiler.
#include <cmath>
#include <cstring>

#include "kernels/bench/causal_conv1d_reference.h"
#include "kernels/bench/harness.cuh"
#include "kernels/causal_conv1d/launch.h"

namespace dmamba::bench {
namespace {

using namespace kernels;

struct Case {
  int64_t batch, d_inner, length, width = 4;
  bool bf16 = false, flags = false, states = true, silu = true, bias = true;
  bool in_place = false;    // last_state where initial_state lies
  int64_t pad = 0;          // elements between rows
  bool taps_first = false;  // the weight lies as (width, d_inner)
  bool starts = true;       // where there are flags: of segments, too
};

/// A problem on the device, with random inputs; what is written begins as NaN.
struct Problem {
  Case size;
  std::mt19937 random{17};

  int64_t tokens = size.batch * size.length, row = size.d_inner + size.pad;
  int64_t item = size.bf16 ? 2 : 4, state_count = size.batch * size.d_inner * (size.width - 1);
  Input x = random_input(random, tokens* row, size.bf16, -1, 1);
  Input dout = random_input(random, tokens* row, size.bf16, -1, 1);
  Input weight = random_input(random, size.d_inner* size.width, false, -1, 1);
  Input bias = random_input(random, size.d_inner, false, -1, 1);
  Input initial = random_input(random, state_count, false, -1, 1);
  Input dlast = random_input(random, state_count, false, -1, 1);
  std::vector<char> mask = std::vector<char>(tokens), starts = std::vector<char>(tokens);
  DeviceArray device_mask{static_cast<size_t>(tokens)}, device_starts{static_cast<size_t>(tokens)};
  DeviceArray out = array(tokens * row * item), dx = array(tokens * row * item);
  DeviceArray last = array(state_count * 4), dinitial = array(state_count * 4);
  DeviceArray dweight = array(size.d_inner * size.width * 4), dbias = array(size.d_inner * 4);

  static DeviceArray array(int64_t bytes) { return DeviceArray(static_cast<size_t>(bytes)); }

  explicit Problem(const Case& c) : size(c) {
    for (int64_t i = 0; i < tokens; ++i) {
      mask[i] = static_cast<char>(!c.flags || random() % 8 != 0);
      starts[i] = static_cast<char>(c.flags && c.starts && random() % 9 == 0);
      if (mask[i] != 0) continue;
      // What the mask hides must not be looked at: NaN.
      check(cudaMemset(x.device.as<char>() + i * row * item, 0xFF, c.d_inner * item), "memset");
    }
    check(cudaMemcpy(device_mask.get(), mask.data(), tokens, cudaMemcpyHostToDevice), "copy");
    check(cudaMemcpy(device_starts.get(), starts.data(), tokens, cudaMemcpyHostToDevice), "copy");
  }

  Sequence rows(const DeviceArray& a) const { return {a.get(), size.length * row, row}; }
  StateView state(const DeviceArray& a) const {
    if (!size.states) return {};
    return {a.get(), size.d_inner * (size.width - 1), size.width - 1, 1};
  }
  template <class Params>
  Params common() {
    Params p{};
    p.batch = size.batch, p.length = size.length, p.d_inner = size.d_inner, p.width = size.width;
    p.storage = size.bf16 ? Storage::kBFloat16 : Storage::kFloat32;
    p.silu = size.silu;
    p.x = rows(x.device);
    p.weight = weight.device.get();
    p.weight_channel_stride = size.taps_first ? 1 : size.width;
    p.weight_tap_stride = size.taps_first ? size.d_inner : 1;
    p.bias = size.bias ? bias.device.get() : nullptr;
    if (size.flags) {
      p.mask = {device_mask.as<bool>()};
      if (size.starts) p.segment_starts = {device_starts.as<bool>()};
    }
    p.initial_state = state(initial.device);
    return p;
  }
  CausalConv1dForwardParams forward() {
    auto p = common<CausalConv1dForwardParams>();
    p.out = rows(out);
    p.last_state = state(size.in_place ? initial.device : last);
    return p;
  }
  CausalConv1dBackwardParams backward() {
    auto p = common<CausalConv1dBackwardParams>();
    p.dout = rows(dout.device), p.dx = rows(dx);
    p.dlast_state = state(dlast.device), p.dinitial_state = state(dinitial);
    return p;
  }
  CausalConv1dGradients gradients() const {
    return {dweight.as<float>(), size.bias ? dbias.as<float>() : nullptr};
  }

  /// Without the padding of rows.
  template <class Out>
  Out dense(const std::vector<float>& padded) const {
    Out result;
    for (int64_t t = 0; t < tokens; ++t) {
      const auto begin = padded.begin() + t * row;
      result.insert(result.end(), begin, begin + size.d_inner);
    }
    return result;
  }
  ConvProblem reference() const {
    Doubles taps(weight.host.begin(), weight.host.end());
    for (int64_t i = 0; size.taps_first && i < std::ssize(taps); ++i) {
      taps[i] = weight.host[i % size.width * size.d_inner + i / size.width];
    }
    const auto widen = [](const std::vector<float>& v) { return Doubles(v.begin(), v.end()); };
    return {size.batch,
            size.length,
            size.d_inner,
            size.width,
            size.silu,
            dense<Doubles>(x.host),
            taps,
            size.bias ? widen(bias.host) : Doubles(),
            size.states ? widen(initial.host) : Doubles(),
            std::vector<bool>(mask.begin(), mask.end()),
            std::vector<bool>(starts.begin(), starts.end()),
            dense<Doubles>(dout.host),
            size.states ? widen(dlast.host) : Doubles()};
  }
};

/// The backward pass with its sums.
void run_backward(Problem& q, void* workspace, cudaStream_t stream) {
  const auto b = q.backward();
  check(launch_causal_conv1d_backward(b, workspace, stream), "backward");
  check(launch_causal_conv1d_backward_sums(b, q.gradients(), workspace, stream), "backward sums");
}

int run_check(const Case& c, cudaStream_t stream) {
  Problem q(c);
  const auto f = q.forward();
  const auto b = q.backward();
  DeviceArray workspace(causal_conv1d_backward_workspace(b));
  // The backward launches first: the forward one may write where the initial state lies.
  run_backward(q, workspace.get(), stream);
  check(cudaStreamSynchronize(stream), "backward");
  const int64_t weights = c.d_inner * c.width;
  const std::vector<float> first = to_host(q.dweight, weights, false);
  run_backward(q, workspace.get(), stream);
  check(launch_causal_conv1d_forward(f, stream), "forward");
  check(cudaStreamSynchronize(stream), "forward");
  const ConvAnswer r = causal_conv1d_reference(q.reference());
  const double limit = c.bf16 ? 1e-2 : 2e-6;
  double worst = 0;
  const char* where = "";
  const auto compare = [&](const char* name, const std::vector<float>& x, const Doubles& answer) {
    const double e = relative_error(x, answer);
    if (e > worst || std::isnan(e)) where = name;
    worst = worse(worst, e);
  };
  const auto rows = [&](const DeviceArray& a) {
    return q.dense<std::vector<float>>(to_host(a, q.tokens * q.row, c.bf16));
  };
  compare("out", rows(q.out), r.out);
  compare("dx", rows(q.dx), r.dx);
  const std::vector<float> dweight = to_host(q.dweight, weights, false);
  compare("dweight", dweight, r.dweight);
  if (c.bias) compare("dbias", to_host(q.dbias, c.d_inner, false), r.dbias);
  if (c.states) {
    const DeviceArray& last = c.in_place ? q.initial.device : q.last;
    compare("last", to_host(last, q.state_count, false), r.last);
    compare("dinitial", to_host(q.dinitial, q.state_count, false), r.dinitial);
  }
  const bool same = std::memcmp(first.data(), dweight.data(), 4 * first.size()) == 0;
  const bool good = worst <= limit && same;
  std::printf("%s %s %3ld x %4ld x %4ld, width %ld%s%s%s%s%s pad %ld: worst %.2e (%s)%s\n",
              good ? "ok  " : "FAIL", c.bf16 ? "bf16" : "fp32", c.batch, c.d_inner, c.length,
              c.width, c.flags ? c.starts ? " flags" : " mask" : "", c.states ? " states" : "",
              c.silu ? " silu" : "", c.bias ? " bias" : "", c.in_place ? " in place" : "", c.pad,
              worst, where, same ? "" : ", dweight differs between runs");
  return good ? 0 : 1;
}

int run_checks(bool small, cudaStream_t stream) {
  int failures = 0;
  for (const int64_t L : {1, 2, 3, 31, 60, 129, 1134}) {
    for (const int64_t d_inner : {1, 37, 256, 1000}) {
      for (int options = 0; options < 8; ++options) {
        failures += run_check({.batch = L > 1000 ? 2 : 5,
                               .d_inner = d_inner,
                               .length = L,
                               .bf16 = options % 2 != 0,
                               .flags = options / 2 % 2 != 0,
                               .states = options / 4 % 2 != 0},
                              stream);
      }
    }
  }
  for (int64_t width = 1; width <= kConvMaxWidth; ++width) {
    for (const int64_t L : {1, 5, 60, 300}) {
      failures += run_check({3, 40, L, width, L == 60, true}, stream);
      failures += run_check({3, 40, L, width, L == 300, false, true, width % 2 == 0}, stream);
      failures += run_check({3, 40, L, width, false, L == 5, false, true, false}, stream);
    }
  }
  for (const int64_t pad : {1, 2, 4, 8}) {
    for (const bool bf16 : {false, true}) {
      failures += run_check({4, 256, 60, 4, bf16, pad == 2, true, true, true, false, pad}, stream);
    }
  }
  for (const int64_t L : {1, 2, 60, 300}) {
    failures += run_check({7, 256, L, 4, false, false, true, true, true, true}, stream);
    failures += run_check({7, 37, L, 3, true, true, true, true, true, true}, stream);
  }
  for (const int64_t d_inner : {37, 256}) {
    failures +=
        run_check({.batch = 3, .d_inner = d_inner, .length = 60, .taps_first = true}, stream);
  }
  // A mask alone, on tiles: lengths about theirs, channels that no block is full of, long
  // stretches.
  for (const int64_t L : {15, 16, 17, 32, 33, 60, 64, 65, 300}) {
    for (const int64_t batch : {3, 600}) {
      if (small && batch * L > 10'000) continue;
      for (int options = 0; options < 4; ++options) {
        failures += run_check({.batch = batch,
                               .d_inner = batch > 3 ? 40 : 264,
                               .length = L,
                               .bf16 = options % 2 != 0,
                               .flags = options / 2 != 0,
                               .states = false,
                               .pad = options / 2 * 8,
                               .starts = false},
                              stream);
      }
    }
  }
  if (!small) failures += run_check({300, 64, 90}, stream);  // more rows than fill the device
  failures += run_check({3000, 64, 1}, stream);
  std::printf("%d checks failed\n", failures);
  return failures;
}

/// A mask alone.
constexpr Case training_step(int64_t d_inner, int64_t length) {
  return {.batch = 64,
          .d_inner = d_inner,
          .length = length,
          .bf16 = true,
          .flags = true,
          .states = false,
          .starts = false};
}

constexpr Case kSizes[] = {
    {.batch = 64, .d_inner = 256, .length = 60, .states = false},
    {.batch = 64, .d_inner = 512, .length = 60, .states = false},
    training_step(256, 60),
    training_step(512, 60),
    training_step(256, 300),
    {.batch = 256, .d_inner = 256, .length = 90, .states = false},
    {.batch = 256, .d_inner = 256, .length = 90, .bf16 = true, .states = false},
    {.batch = 256, .d_inner = 256, .length = 90, .flags = true, .states = false},
    {.batch = 256, .d_inner = 256, .length = 90, .bf16 = true, .flags = true, .states = false},
    {.batch = 64, .d_inner = 256, .length = 1, .in_place = true},
    {.batch = 16, .d_inner = 2048, .length = 2048, .bf16 = true, .states = false},
};

void run_once(int row, cudaStream_t stream) {
  Problem q(kSizes[row]);
  const auto b = q.backward();
  DeviceArray workspace(causal_conv1d_backward_workspace(b));
  check(launch_causal_conv1d_forward(q.forward(), stream), "forward");
  run_backward(q, workspace.get(), stream);
  check(cudaStreamSynchronize(stream), "once");
}

void print_times(const Times& t, double bytes, double bandwidth) {
  const double floor = bytes / bandwidth;
  std::printf(" | %7.2f (%7.2f-%7.2f) %5.0f %6.2f %6.2f", t.median, t.low, t.high,
              bytes / t.median * 1e-3, floor, t.median / floor);
}

void run_times(cudaStream_t stream) {
  const double bandwidth = copy_bandwidth(stream);
  std::printf("copy %.2f TB/s\n%-27s", bandwidth * 1e-6, "");
  for (const char* what : {"forward us", "backward us"}) {
    std::printf(" | %25s %5s %6s %6s", what, "GB/s", "floor", "ratio");
  }
  std::printf("\n");
  for (const Case& c : kSizes) {
    Problem q(c);
    const auto f = q.forward();
    const auto b = q.backward();
    DeviceArray workspace(causal_conv1d_backward_workspace(b));
    const Times forward =
        time_by_replay(stream, [&] { check(launch_causal_conv1d_forward(f, stream), "forward"); });
    const Times backward =
        time_by_replay(stream, [&] { run_backward(q, workspace.get(), stream); });
    const double bytes = static_cast<double>(q.tokens * c.d_inner * q.item);
    std::printf("%s %3ld x %4ld x %4ld %5s", c.bf16 ? "bf16" : "fp32", c.batch, c.d_inner, c.length,
                c.flags ? c.starts ? "flags" : "mask" : "");
    print_times(forward, 2 * bytes, bandwidth);
    print_times(backward, 3 * bytes, bandwidth);
    std::printf("\n");
  }
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
