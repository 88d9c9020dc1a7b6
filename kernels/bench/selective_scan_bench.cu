// Checks and times the selective scan alone, without torch:
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -I . kernels/selective_scan/*.cu
//        kernels/bench/selective_scan_bench.cu -o selective_scan_bench
//   ./selective_scan_bench check [seed] | time [chunk_length] | short [chunk_length] | all |
//                          once ROW
//
// `short` leaves the large sizes out; `once` runs row ROW of the table once forward and once
// backward, for a profiler.
#include <cmath>
#include <cstring>

#include "kernels/bench/harness.cuh"
#include "kernels/bench/selective_scan_reference.h"
#include "kernels/selective_scan/launch.h"

namespace dmamba::bench {
namespace {

using namespace kernels;

unsigned seed = 17;

/// A problem on the device, with random inputs, or inputs of zero bytes where they are not checked.
struct Problem {
  int64_t batch, d_inner, length, d_state;
  bool bf16, flags, shut_gates;
  std::mt19937 random{seed};

  int64_t tokens = batch * length, channels = tokens * d_inner, states = tokens * d_state;
  int64_t packed = batch * d_inner * d_state;
  Input u = random_input(random, channels, bf16, -1, 1);
  Input delta = random_input(random, channels, bf16, -3, 1);
  Input z = gates(random, channels, bf16, shut_gates);
  Input dout = gradients_of_out(random, channels, bf16, shut_gates);
  Input B = random_input(random, states, bf16, -1, 1);
  Input C = random_input(random, states, bf16, -1, 1);
  Input A = random_input(random, d_inner* d_state, false, -4, -0.05F);
  Input D = random_input(random, d_inner, false, -1, 1);
  Input bias = random_input(random, d_inner, false, -3, 0);
  Input initial = random_input(random, packed, false, -1, 1);
  Input dlast = random_input(random, packed, false, -1, 1);
  std::vector<char> mask = std::vector<char>(tokens), starts = std::vector<char>(tokens);
  DeviceArray device_mask{static_cast<size_t>(tokens)}, device_starts{static_cast<size_t>(tokens)};
  int64_t item = bf16 ? 2 : 4, every = kScanCheckpointEvery, checkpoints_n = (length - 1) / every;
  DeviceArray out = array(channels * item), du = array(channels * item);
  DeviceArray ddelta = array(channels * item), dz = array(channels * item);
  DeviceArray dB = array(states * item), dC = array(states * item);
  DeviceArray last = array(packed * 4), dinitial = array(packed * 4);
  DeviceArray dA = array(d_inner * d_state * 4), dD = array(d_inner * 4),
              dbias = array(d_inner * 4);
  DeviceArray checkpoints = array(checkpoints_n * packed * item);

  Storage storage() const { return bf16 ? Storage::kBFloat16 : Storage::kFloat32; }
  static DeviceArray array(int64_t bytes) { return DeviceArray(static_cast<size_t>(bytes)); }

  /// z, of which some may be (next to) zero, so that the output does not tell its gradient, or
  /// extreme.
  static Input gates(std::mt19937& random, int64_t count, bool bf16, bool shut) {
    constexpr float kShut[] = {0,         -0.0F,     0x1p-24F, -0x1p-25F, 0x1.8p-26F, 0x1p-60F,
                               0x1p-130F, -0x1p-20F, -60,      -88,       -1e30F,     -3e38F};
    std::vector<float> z = random_numbers(random, count, -2, 2);
    for (float& x : z) {
      if (shut && random() % 256 == 0) x = kShut[random() % std::size(kShut)];
    }
    return to_device(std::move(z), bf16);
  }
  /// dout, of which some may be zero.
  static Input gradients_of_out(std::mt19937& random, int64_t count, bool bf16, bool zeros) {
    std::vector<float> dout = random_numbers(random, count, -1, 1);
    for (float& x : dout) {
      if (zeros && random() % 8 == 0) x = 0.0F;
    }
    return to_device(std::move(dout), bf16);
  }

  Problem(int64_t batch_, int64_t d_inner_, int64_t length_, int64_t d_state_, bool bf16_,
          bool flags_, bool shut_gates_ = false)
      : batch(batch_),
        d_inner(d_inner_),
        length(length_),
        d_state(d_state_),
        bf16(bf16_),
        flags(flags_),
        shut_gates(shut_gates_) {
    for (int64_t i = 0; i < tokens; ++i) {
      mask[i] = static_cast<char>(!flags || random() % 8 != 0);
      starts[i] = static_cast<char>(flags && random() % 20 == 0);
    }
    check(cudaMemcpy(device_mask.get(), mask.data(), tokens, cudaMemcpyHostToDevice), "copy");
    check(cudaMemcpy(device_starts.get(), starts.data(), tokens, cudaMemcpyHostToDevice), "copy");
  }

  template <class Params>
  void common(Params& p) {
    p.batch = batch, p.length = length, p.d_inner = d_inner, p.d_state = d_state;
    p.storage = storage();
    p.delta_softplus = true;
    const auto rows = [&](const DeviceArray& a, int64_t width) {
      return Sequence{a.get(), length * width, width};
    };
    p.u = rows(u.device, d_inner), p.delta = rows(delta.device, d_inner);
    p.z = rows(z.device, d_inner);
    p.B = rows(B.device, d_state), p.C = rows(C.device, d_state);
    p.A = A.device.get(), p.A_channel_stride = d_state, p.A_state_stride = 1;
    p.D = D.device.get(), p.delta_bias = bias.device.get();
    if (flags) {
      p.mask = {device_mask.as<bool>()}, p.segment_starts = {device_starts.as<bool>()};
    }
    p.initial_state = state(initial.device);
    p.checkpoint_every = every;
    p.checkpoints = checkpoints.get();
  }
  StateView state(const DeviceArray& a) const { return {a.get(), d_inner * d_state, d_state, 1}; }
  SelectiveScanForwardParams forward() {
    SelectiveScanForwardParams p{};
    common(p);
    p.out = {out.get(), length * d_inner, d_inner};
    p.last_state = state(last);
    return p;
  }
  SelectiveScanBackwardParams backward() {
    SelectiveScanBackwardParams p{};
    common(p);
    const auto rows = [&](const DeviceArray& a) {
      return Sequence{a.get(), length * d_inner, d_inner};
    };
    p.dout = rows(dout.device), p.out = rows(out), p.du = rows(du), p.ddelta = rows(ddelta),
    p.dz = rows(dz);
    p.dlast_state = state(dlast.device), p.dinitial_state = state(dinitial);
    return p;
  }
  SelectiveScanGradients gradients() {
    const auto rows = [&](const DeviceArray& a) {
      return Sequence{a.get(), length * d_state, d_state};
    };
    return {dA.as<float>(), rows(dB), rows(dC), dD.as<float>(), dbias.as<float>()};
  }
};

Doubles widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

int run_check(int64_t batch, int64_t d_inner, int64_t length, int64_t d_state, bool bf16,
              bool flags, SelectiveScanPlan plan, cudaStream_t stream) {
  Problem q(batch, d_inner, length, d_state, bf16, flags, /*shut_gates=*/true);
  auto f = q.forward();
  auto b = q.backward();
  DeviceArray fw(selective_scan_forward_workspace(f, plan));
  DeviceArray bw(selective_scan_backward_workspace(b, plan));
  check(launch_selective_scan_forward(f, plan, fw.get(), stream), "forward");
  check(cudaStreamSynchronize(stream), "forward");
  check(launch_selective_scan_backward(b, q.gradients(), plan, bw.get(), stream), "backward");
  check(cudaStreamSynchronize(stream), "backward");
  const std::vector<bool> mask(q.mask.begin(), q.mask.end());
  const std::vector<bool> starts(q.starts.begin(), q.starts.end());
  const ScanAnswer r = selective_scan_reference(
      {batch, length, d_inner, d_state, widen(q.u.host), widen(q.delta.host), widen(q.z.host),
       widen(q.B.host), widen(q.C.host), widen(q.A.host), widen(q.D.host), widen(q.bias.host),
       widen(q.initial.host), mask, starts, widen(q.dout.host), widen(q.dlast.host)});
  const double limit = bf16 ? 1e-2 : length <= 256 ? 2e-6 : 1e-5;
  double worst = 0;
  const char* where = "";
  const auto compare = [&](const char* name, const DeviceArray& a, int64_t n, bool narrow,
                           const Doubles& reference) {
    const double e = relative_error(to_host(a, n, narrow), reference);
    if (e > worst || std::isnan(e)) where = name;
    worst = worse(worst, e);
  };
  compare("out", q.out, q.channels, bf16, r.out);
  compare("last", q.last, q.packed, false, r.last);
  compare("du", q.du, q.channels, bf16, r.du);
  compare("ddelta", q.ddelta, q.channels, bf16, r.ddelta);
  compare("dz", q.dz, q.channels, bf16, r.dz);
  compare("dB", q.dB, q.states, bf16, r.dB);
  compare("dC", q.dC, q.states, bf16, r.dC);
  compare("dA", q.dA, d_inner * d_state, false, r.dA);
  compare("dD", q.dD, d_inner, false, r.dD);
  compare("dbias", q.dbias, d_inner, false, r.ddelta_bias);
  compare("dinitial", q.dinitial, q.packed, false, r.dinitial);
  const bool good = worst <= limit;
  std::printf("%s %4s %3ld x %4ld x %5ld x %3ld%s chunks of %ld: worst %.2e (%s), limit %.0e\n",
              good ? "ok  " : "FAIL", bf16 ? "bf16" : "fp32", batch, d_inner, length, d_state,
              flags ? " flags" : "", plan.chunk_length, worst, where, limit);
  return good ? 0 : 1;
}

int run_checks(cudaStream_t stream) {
  int failures = 0;
  const auto whole = [](int64_t L) { return SelectiveScanPlan{(L + 15) / 16 * 16}; };
  for (const int64_t L : {1, 2, 31, 60, 129, 1134}) {
    for (const int64_t d_inner : {1, 37, 256}) {
      const int64_t batch = L > 1000 ? 1 : 3;
      failures += run_check(batch, d_inner, L, 16, false, L % 2 == 0, whole(L), stream);
      failures += run_check(batch, d_inner, L, 16, true, L % 2 == 1, whole(L), stream);
    }
  }
  for (const int64_t N : {1, 8, 12, 20, 32, 64, 100, 128}) {
    failures += run_check(2, 40, 60, N, N % 8 == 4, true, whole(60), stream);
    failures += run_check(2, 40, 64, N, N % 8 == 0, false, whole(64), stream);
  }
  for (const int64_t chunk : {16, 64, 640}) {
    failures += run_check(2, 37, 1134, 16, false, true, {chunk}, stream);
    failures += run_check(2, 256, 1134, 16, true, false, {chunk}, stream);
  }
  failures += run_check(1, 16, 5000, 16, false, false, whole(5000), stream);
  std::printf("%d checks failed\n", failures);
  return failures;
}

struct Size {
  bool bf16;
  int64_t batch, d_inner, length;
};
constexpr Size kSizes[] = {
    {false, 64, 256, 60},  {false, 64, 512, 60},   {false, 256, 256, 90},  {true, 256, 256, 90},
    {false, 64, 256, 300}, {true, 16, 2048, 2048}, {true, 2, 4096, 16384}, {true, 1, 2048, 65536},
};

void run_once(int row, cudaStream_t stream) {
  const Size& s = kSizes[row];
  Problem q(s.batch, s.d_inner, s.length, 16, s.bf16, false);
  auto f = q.forward();
  auto b = q.backward();
  const SelectiveScanPlan fp = plan_selective_scan(f, multiprocessors());
  const SelectiveScanPlan bp = plan_selective_scan(b, multiprocessors());
  DeviceArray fw(selective_scan_forward_workspace(f, fp));
  DeviceArray bw(selective_scan_backward_workspace(b, bp));
  check(launch_selective_scan_forward(f, fp, fw.get(), stream), "forward");
  check(launch_selective_scan_backward(b, q.gradients(), bp, bw.get(), stream), "backward");
  check(cudaStreamSynchronize(stream), "once");
}

void run_times(int64_t chunk, bool skip_large, cudaStream_t stream) {
  const double bandwidth = copy_bandwidth(stream), exponentials = exponential_rate();
  std::printf("copy %.2f TB/s, exponentials %.2f T/s\n", bandwidth * 1e-6, exponentials * 1e-6);
  std::printf("%-28s %19s %7s %6s | %19s %6s %6s\n", "", "forward us", "floor", "ratio",
              "backward us", "floor", "ratio");
  for (const Size& s : kSizes) {
    if (skip_large && s.batch * s.d_inner * s.length > 10'000'000) continue;
    Problem q(s.batch, s.d_inner, s.length, 16, s.bf16, false);
    auto f = q.forward();
    auto b = q.backward();
    f.initial_state = b.initial_state = b.dlast_state = b.dinitial_state = StateView{};
    SelectiveScanPlan fp = plan_selective_scan(f, multiprocessors());
    SelectiveScanPlan bp = plan_selective_scan(b, multiprocessors());
    if (chunk > 0) fp.chunk_length = bp.chunk_length = chunk;
    DeviceArray fw(selective_scan_forward_workspace(f, fp));
    DeviceArray bw(selective_scan_backward_workspace(b, bp));
    const Times forward = time_by_replay(  // first: the backward pass reads what it leaves
        stream, [&] { check(launch_selective_scan_forward(f, fp, fw.get(), stream), "forward"); });
    const Times backward = time_by_replay(stream, [&] {
      check(launch_selective_scan_backward(b, q.gradients(), bp, bw.get(), stream), "backward");
    });
    const double n = static_cast<double>(q.channels), item = static_cast<double>(q.item);
    const double states = static_cast<double>(q.states) * item;
    const double forward_floor =
        std::max((4 * n * item + 2 * states) / bandwidth, 16 * n / exponentials);
    // The output, which can be computed again, is not counted.
    const double backward_floor =
        std::max((7 * n * item + 4 * states) / bandwidth, 16 * n / exponentials);
    std::printf(
        "%s %3ld x %4ld x %5ld (%6ld) %7.1f (%5.1f-%5.1f) %6.1f %6.2f | %7.1f "
        "(%6.1f-%6.1f) %6.1f %6.2f\n",
        s.bf16 ? "bf16" : "fp32", s.batch, s.d_inner, s.length, fp.chunk_length, forward.median,
        forward.low, forward.high, forward_floor, forward.median / forward_floor, backward.median,
        backward.low, backward.high, backward_floor, backward.median / backward_floor);
  }
}

}  // namespace
}  // namespace dmamba::bench

int main(int argc, char** argv) {
  using namespace dmamba::bench;
  const char* what = argc > 1 ? argv[1] : "all";
  const cudaStream_t stream = open_device();
  int failures = 0;
  if (std::strcmp(what, "check") == 0 && argc > 2) seed = static_cast<unsigned>(std::atoi(argv[2]));
  if (std::strcmp(what, "once") == 0) {
    run_once(argc > 2 ? std::atoi(argv[2]) : 0, stream);
    return 0;
  }
  if (std::strcmp(what, "time") != 0 && std::strcmp(what, "short") != 0)
    failures = run_checks(stream);
  if (std::strcmp(what, "check") != 0) {
    run_times(argc > 2 ? std::atol(argv[2]) : 0, std::strcmp(what, "short") == 0, stream);
  }
  return failures == 0 ? 0 : 1;
}
