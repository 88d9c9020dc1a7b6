// Checks and times the token embedding, with and without the first layer's norm, and the residual
// stream's steps, without torch:
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -I . kernels/embedding/*.cu kernels/normalization/*.cu
//        kernels/bench/embedding_bench.cu -o embedding_bench
//   ./embedding_bench check | time | all | small
//
// `small` checks the least sizes alone, for sanitizers and emulation.
#include <cstring>
#include <string>

#include "kernels/bench/embedding_reference.h"
#include "kernels/bench/harness.cuh"
#include "kernels/embedding/launch.h"
#include "kernels/normalization/launch.h"

namespace dmamba::bench {
namespace {

using namespace kernels;

constexpr uint64_t kKey = 0x0505050505050505ULL;

enum class Timesteps { kRandom, kSegments, kOne };  // of the steps' timesteps
enum class Next { kNone, kFloat32, kBFloat16 };

Doubles doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }
DeviceArray floats(int64_t count) {
  return DeviceArray(sizeof(float) * static_cast<size_t>(count));
}

DeviceArray dropout_key() {
  DeviceArray key(sizeof(int64_t));
  check(cudaMemset(key.get(), 5, sizeof(int64_t)), "memset");
  return key;
}
DropoutMask mask_of(bool dropout, const DeviceArray& key) {
  return {dropout ? key.as<int64_t>() : nullptr, 429496730U, 1.0F / 0.9F, 0};
}

/// Parts (blocks, columns, width) added up, one column.
std::vector<float> add_parts(const DeviceArray& parts, int64_t blocks, int64_t columns,
                             int64_t width, int64_t column) {
  const std::vector<float> all = to_host(parts, blocks * columns * width, false);
  std::vector<float> sums(static_cast<size_t>(width));
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t c = 0; c < width; ++c) sums[c] += all[(b * columns + column) * width + c];
  }
  return sums;
}

/// Segments of K steps behind padding of time 0, random times, or one time.
std::vector<int64_t> draw_timesteps(std::mt19937& random, int64_t steps, int64_t most,
                                    Timesteps how) {
  constexpr int64_t kContext = 20;
  std::vector<int64_t> times(static_cast<size_t>(steps));
  int64_t start = 0;
  for (int64_t i = 0; i < steps; ++i) {
    if (i % kContext == 0) start = static_cast<int64_t>(random() % (most + 10)) - 10;
    const auto any = static_cast<int64_t>(random() % (most + 4)) - 2;  // some of them outside
    times[i] = how == Timesteps::kRandom ? any : how == Timesteps::kOne ? 3 : start + i % kContext;
  }
  return times;
}

struct Problem {
  int64_t steps, width, features[3], most;
  Timesteps how;
  Next next;
  bool dropout;
  std::mt19937 random{31};
  std::vector<Input> values, weights, biases;
  Input time = random_input(random, most* width, false, -1, 1);
  Input norm[2] = {random_input(random, width, false, 0.5F, 1.5F),
                   random_input(random, width, false, -0.5F, 0.5F)};
  Input next_norm[2] = {random_input(random, width, false, 0.5F, 1.5F),
                        random_input(random, width, false, -0.5F, 0.5F)};
  Input dout = random_input(random, 3 * steps * width, false, -1, 1);
  Input dnormed = random_input(random, 3 * steps * width, next == Next::kBFloat16, -1, 1);
  std::vector<int64_t> timesteps = draw_timesteps(random, steps, most, how);
  DeviceArray times{sizeof(int64_t) * static_cast<size_t>(steps)};
  DeviceArray key = dropout_key();
  DeviceArray tokens = floats(3 * steps * width), statistics = floats(6 * steps);
  DeviceArray out = floats(3 * steps * width), normed = floats(3 * steps * width);
  DeviceArray next_statistics = floats(6 * steps), dtokens = floats(3 * steps * width);
  DeviceArray dsteps = floats(steps * width), dtime = floats(most * width);
  DeviceArray parts = floats(embedding_norm_blocks(steps, width) * 4 * width);
  int64_t outputs = 0, n_tickets = 0;
  DeviceArray dlinear, scratch, tickets;

  Problem(int64_t steps, int64_t width, const int64_t (&counts)[3], int64_t most, Timesteps how,
          Next next, bool dropout)
      : steps(steps),
        width(width),
        features{counts[0], counts[1], counts[2]},
        most(most),
        how(how),
        next(next),
        dropout(dropout),
        dlinear(floats((counts[0] + counts[1] + counts[2] + 3) * width)),
        scratch(floats(embedding_slices(steps) * (counts[0] + counts[1] + counts[2] + 24) * width)),
        tickets(floats((counts[0] + counts[1] + counts[2] + 24) * width)) {
    for (const int64_t count : counts) {
      values.push_back(random_input(random, steps * count, false, -1, 1));
      weights.push_back(random_input(random, width * count, false, -1, 1));
      biases.push_back(random_input(random, width, false, -1, 1));
      outputs += (count + 1) * width;
    }
    check(cudaMemcpy(times.get(), timesteps.data(), sizeof(int64_t) * timesteps.size(),
                     cudaMemcpyHostToDevice),
          "copy");
    const EmbeddingParams p = forward();
    n_tickets = embedding_tickets(p.kinds, width);
  }

  bool wide() const { return next != Next::kBFloat16; }
  EmbeddingParams forward() const {
    EmbeddingParams p{};
    p.steps = steps;
    p.width = width;
    for (size_t k = 0; k < 3; ++k) {
      p.kinds[k] = {values[k].device.as<float>(), weights[k].device.as<float>(),
                    biases[k].device.as<float>(), features[k], times.as<int64_t>()};
    }
    p.time = time.device.as<float>();
    p.max_timestep = most;
    p.norm_weight = norm[0].device.as<float>();
    p.norm_bias = norm[1].device.as<float>();
    p.epsilon = 1e-5F;
    p.dropout = mask_of(dropout, key);
    p.tokens = tokens.as<float>();
    p.statistics = statistics.as<float>();
    p.out = out.as<float>();
    p.next = next_of();
    return p;
  }
  NextNorm next_of() const {
    if (next == Next::kNone) return {};
    return {next_norm[0].device.as<float>(),
            next_norm[1].device.as<float>(),
            1e-5F,
            wide() ? Storage::kFloat32 : Storage::kBFloat16,
            normed.get(),
            next_statistics.as<float>()};
  }
  EmbeddingNormParams norm_backward() const {
    EmbeddingNormParams p{};
    p.steps = steps;
    p.width = width;
    p.dout = dout.device.as<float>();
    p.tokens = tokens.as<float>();
    p.statistics = statistics.as<float>();
    p.weight = norm[0].device.as<float>();
    p.bias = norm[1].device.as<float>();
    p.dropout = mask_of(dropout, key);
    p.next = next_of();
    p.dnormed = dnormed.device.get();
    p.dtokens = dtokens.as<float>();
    p.dsteps = dsteps.as<float>();
    p.parts = parts.as<float>();
    p.tickets = tickets.as<int>();
    p.n_tickets = n_tickets;
    return p;
  }
  EmbeddingGradientParams gradients() const {
    EmbeddingGradientParams p{};
    p.steps = steps;
    p.width = width;
    p.max_timestep = most;
    for (int k = 0; k < 3; ++k) p.kinds[k] = forward().kinds[k];
    p.timesteps = times.as<int64_t>();
    p.dtokens = dtokens.as<float>();
    p.dsteps = dsteps.as<float>();
    p.dlinear = dlinear.as<float>();
    p.dtime = dtime.as<float>();
    p.scratch = scratch.as<float>();
    p.tickets = tickets.as<int>();
    return p;
  }
};

void check_embedding(const Problem& p, cudaStream_t stream) {
  check(launch_embedding(p.forward(), stream), "forward");
  check(launch_embedding_norm_backward(p.norm_backward(), stream), "norm backward");
  check(launch_embedding_gradients(p.gradients(), stream), "gradients");
  check(cudaStreamSynchronize(stream), "run");
  std::printf("%lld steps of %lld, %lld features, %lld times (%d), next norm %d, dropout %d:",
              static_cast<long long>(p.steps), static_cast<long long>(p.width),
              static_cast<long long>(p.features[1]), static_cast<long long>(p.most),
              static_cast<int>(p.how), static_cast<int>(p.next), p.dropout);
  EmbeddingReference r{p.steps, p.width, p.most, {}, p.timesteps, p.time.host, {}, {}};
  for (size_t k = 0; k < 3; ++k) {
    r.kinds.push_back({p.values[k].host, p.weights[k].host, p.biases[k].host, p.features[k]});
  }
  NormReference norm{p.width, doubles(p.norm[0].host), doubles(p.norm[1].host), {}, {}, {}, {}};
  NormReference next{
      p.width, doubles(p.next_norm[0].host), doubles(p.next_norm[1].host), {}, {}, {}, {}};
  const bool has_next = p.next != Next::kNone;
  const Doubles tokens = r.tokens();
  Doubles out = norm.forward(tokens);
  if (p.dropout) apply_dropout(out, kKey);
  const int64_t count = 3 * p.steps * p.width;
  constexpr double kLimit = 1e-5;
  compare("tokens", to_host(p.tokens, count, false), tokens, kLimit);
  compare("out", to_host(p.out, count, false), out, kLimit);
  Doubles gradient = doubles(p.dout.host);
  if (has_next) {
    compare("normed", to_host(p.normed, count, !p.wide()), next.forward(out),
            p.wide() ? kLimit : 4e-3);
    const Doubles through = next.backward(doubles(p.dnormed.host));
    for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += through[i];
  }
  if (p.dropout) apply_dropout(gradient, kKey);
  const Doubles dtokens = norm.backward(gradient);
  r.backward(dtokens);
  compare("dtokens", to_host(p.dtokens, count, false), dtokens, kLimit);
  const int64_t blocks = embedding_norm_blocks(p.steps, p.width), columns = has_next ? 4 : 2;
  const auto column = [&](int64_t c) { return add_parts(p.parts, blocks, columns, p.width, c); };
  compare("dweight", column(0), norm.dweight, kLimit);
  compare("dbias", column(1), norm.dbias, kLimit);
  if (has_next) {
    compare("next", column(2), next.dweight, kLimit);
    compare("next", column(3), next.dbias, kLimit);
  }
  compare("linear", to_host(p.dlinear, p.outputs, false), r.dlinear, kLimit);
  compare("time", to_host(p.dtime, p.most * p.width, false), r.dtime, kLimit);
  std::printf("\n");
}

/// A step of the residual stream on its way back.
struct Residual {
  int64_t rows, width;
  bool bf16, dropout, has_sum;
  std::mt19937 random{37};
  Input dnormed = random_input(random, rows* width, bf16, -1, 1);
  Input dsum = random_input(random, rows* width, false, -1, 1);
  Input sum = random_input(random, rows* width, false, -1, 1);
  Input weight = random_input(random, width, false, 0.5F, 1.5F);
  Input bias = random_input(random, width, false, -0.5F, 0.5F);
  DeviceArray key = dropout_key(), statistics = floats(2 * rows), normed = floats(rows * width);
  DeviceArray dresidual = floats(rows * width), dbranch = floats(rows * width);
  DeviceArray parts = floats(norm_backward_blocks(rows, width) * 3 * width);

  AddNormParams forward() const {
    AddNormParams p{};
    p.rows = rows;
    p.width = width;
    p.storage = bf16 ? Storage::kBFloat16 : Storage::kFloat32;
    p.residual = sum.device.as<float>();
    p.weight = weight.device.as<float>();
    p.norm_bias = bias.device.as<float>();
    p.epsilon = 1e-5F;
    p.sum = sum.device.as<float>();
    p.normed = normed.get();
    p.statistics = statistics.as<float>();
    return p;
  }
  AddNormBackwardParams backward() const {
    AddNormBackwardParams p{};
    p.rows = rows;
    p.width = width;
    p.storage = bf16 ? Storage::kBFloat16 : Storage::kFloat32;
    p.dnormed = dnormed.device.get();
    p.dsum_in = has_sum ? dsum.device.as<float>() : nullptr;
    p.sum = sum.device.as<float>();
    p.statistics = statistics.as<float>();
    p.weight = weight.device.as<float>();
    p.dropout = mask_of(dropout, key);
    p.has_bias = true;
    p.dresidual = dresidual.as<float>();
    p.dbranch = dbranch.get();
    p.parts = parts.as<float>();
    return p;
  }
};

void check_residual(const Residual& p, cudaStream_t stream) {
  check(launch_add_norm(p.forward(), stream), "forward");
  check(launch_add_norm_backward(p.backward(), stream), "backward");
  check(cudaStreamSynchronize(stream), "run");
  std::printf("%lld rows of %lld, bf16 %d, dropout %d, dsum %d:", static_cast<long long>(p.rows),
              static_cast<long long>(p.width), p.bf16, p.dropout, p.has_sum);
  NormReference norm{p.width, doubles(p.weight.host), doubles(p.bias.host), {}, {}, {}, {}};
  const int64_t count = p.rows * p.width;
  const double limit = p.bf16 ? 4e-3 : 1e-5;
  compare("normed", to_host(p.normed, count, p.bf16), norm.forward(doubles(p.sum.host)), limit);
  Doubles gradient = norm.backward(doubles(p.dnormed.host));
  if (p.has_sum) {
    for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += p.dsum.host[i];
  }
  compare("dresidual", to_host(p.dresidual, count, false), gradient, 1e-5);
  if (p.dropout) apply_dropout(gradient, kKey);
  compare("dbranch", to_host(p.dbranch, count, p.bf16), gradient, limit);
  Doubles sums(static_cast<size_t>(p.width));
  for (int64_t i = 0; i < count; ++i) sums[i % p.width] += gradient[i];
  const auto column = [&](int64_t c) {
    return add_parts(p.parts, norm_backward_blocks(p.rows, p.width), 3, p.width, c);
  };
  compare("dweight", column(0), norm.dweight, 1e-5);
  compare("dbias", column(1), norm.dbias, 1e-5);
  compare("bias", column(2), sums, 1e-5);
  std::printf("\n");
}

void check_all(bool small, cudaStream_t stream) {
  for (const auto next : {Next::kNone, Next::kFloat32, Next::kBFloat16}) {
    const bool dropout = next != Next::kFloat32;
    for (const int64_t width : {64, 128, 192, 256, 320, 576, 1024}) {
      check_embedding({37, width, {1, 11, 3}, 11, Timesteps::kRandom, next, dropout}, stream);
    }
    check_embedding({1, 128, {1, 7, 8}, 1, Timesteps::kOne, next, dropout}, stream);
    if (small) continue;
    check_embedding({1280, 128, {1, 11, 3}, 1000, Timesteps::kSegments, next, dropout}, stream);
    check_embedding({700, 128, {1, 17, 6}, 1000, Timesteps::kOne, next, dropout}, stream);
    check_embedding({9001, 128, {1, 111, 8}, 50, Timesteps::kRandom, next, dropout}, stream);
  }
  for (const int64_t width : {64, 128, 192, 256, 320, 576, 1024}) {
    for (const bool flag : {false, true}) {
      check_residual({45, width, flag, flag, true}, stream);
      check_residual({1, width, !flag, flag, !flag}, stream);
      if (!small) check_residual({9001, width, flag, true, flag}, stream);
    }
  }
  std::printf("%d checks failed\n", failures);
}

void print(const char* what, const Times& t) {
  std::printf("  %-22s %5.1f us (%.1f to %.1f)\n", what, t.median, t.low, t.high);
}

void time_all(cudaStream_t stream) {
  for (const int64_t steps : {1280, 6400}) {
    for (const int64_t width : {128, 256}) {
      const Problem plain(steps, width, {1, 11, 3}, 1000, Timesteps::kSegments, Next::kNone, true);
      const Problem next(steps, width, {1, 11, 3}, 1000, Timesteps::kSegments, Next::kBFloat16,
                         true);
      std::printf("%lld steps of %lld\n", static_cast<long long>(steps),
                  static_cast<long long>(width));
      const auto time = [&](const char* what, auto&& call) {
        print(what, time_by_replay(stream, [&] { check(call(), "run"); }));
      };
      time("embedding", [&] { return launch_embedding(plain.forward(), stream); });
      time("  and norm", [&] { return launch_embedding(next.forward(), stream); });
      time("norm backward",
           [&] { return launch_embedding_norm_backward(plain.norm_backward(), stream); });
      time("  of both norms",
           [&] { return launch_embedding_norm_backward(next.norm_backward(), stream); });
      const auto both = [&](const Problem& p) {
        const cudaError_t error = launch_embedding_norm_backward(p.norm_backward(), stream);
        return error != cudaSuccess ? error : launch_embedding_gradients(p.gradients(), stream);
      };
      time("  with the gradients", [&] { return both(next); });
      const Problem one(steps, width, {1, 11, 3}, 1000, Timesteps::kOne, Next::kBFloat16, true);
      time("    of one timestep", [&] { return both(one); });
      for (const bool bf16 : {false, true}) {
        const Residual residual{3 * steps, width, bf16, true, true};
        time(bf16 ? "add_norm, bf16" : "add_norm, fp32",
             [&] { return launch_add_norm(residual.forward(), stream); });
        time("  backward", [&] { return launch_add_norm_backward(residual.backward(), stream); });
      }
    }
  }
}

int run(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  cudaStream_t stream = open_device();
  if (what != "time") check_all(what == "small", stream);
  if (what == "time" || what == "all") time_all(stream);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace dmamba::bench

int main(int argc, char** argv) { return dmamba::bench::run(argc, argv); }
