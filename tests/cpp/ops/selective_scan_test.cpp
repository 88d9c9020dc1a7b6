// The selective scan against a scalar fp64 loop over its equations, and its own promises: threads,
// strides, steps, chained halves, padding and packed segments.
#include <torch/torch.h>

#include <cmath>
#include <optional>

#include "tests/cpp/ops/test_support.h"

namespace dmamba::ops::testing {
namespace {

using at::Tensor;

/// The arguments of one call.
struct Scan {
  Tensor u, delta, A, B, C;
  OptionalTensor D, z, delta_bias;
  bool softplus = true;
  TokenFlags flags;
  OptionalTensor initial_state;

  std::tuple<Tensor, Tensor> run() const {
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, softplus, flags, initial_state);
  }

  /// Tokens [begin, end), from the given state.
  Scan slice(int64_t begin, int64_t end, const OptionalTensor& state) const {
    const auto cut = [&](const Tensor& t) { return t.slice(1, begin, end); };
    Scan s = *this;
    s.u = cut(u), s.delta = cut(delta), s.B = cut(B), s.C = cut(C);
    if (z) s.z = cut(*z);
    if (flags.mask) s.flags.mask = cut(*flags.mask);
    if (flags.segment_starts) s.flags.segment_starts = cut(*flags.segment_starts);
    s.initial_state = state;
    return s;
  }
};

/// Values as in a trained block: dt of 1e-3 to 1, A from -d_state to -1. All options on.
Scan make_scan(int64_t batch, int64_t L, int64_t d_inner, int64_t d_state,
               at::ScalarType dtype = at::kFloat) {
  torch::manual_seed(L * 1000 + d_inner * 10 + d_state);
  const auto parameter = dtype == at::kDouble ? at::kDouble : at::kFloat;
  Scan s;
  s.u = torch::randn({batch, L, d_inner}).to(dtype);
  s.delta = torch::randn({batch, L, d_inner}).to(dtype);
  s.A = -(torch::rand({d_inner, d_state}) * static_cast<double>(d_state) + 0.1).to(parameter);
  s.B = torch::randn({batch, L, d_state}).to(dtype);
  s.C = torch::randn({batch, L, d_state}).to(dtype);
  s.D = torch::randn({d_inner}).to(parameter);
  s.z = torch::randn({batch, L, d_inner}).to(dtype);
  s.delta_bias = (torch::rand({d_inner}) * 4 - 5).to(parameter);
  s.flags.mask = torch::rand({batch, L}) > 0.2;
  s.flags.segment_starts = torch::rand({batch, L}) < 0.05;
  s.initial_state = torch::randn({batch, d_inner, d_state}).to(parameter);
  return s;
}

double softplus(double x) { return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

/// Output and last state, in fp64, token by token and channel by channel.
std::tuple<Tensor, Tensor> reference(const Scan& s) {
  const auto real = [](const Tensor& t) { return t.to(at::kDouble).contiguous(); };
  const Tensor u_ = real(s.u), delta_ = real(s.delta), A_ = real(s.A), B_ = real(s.B),
               C_ = real(s.C);
  const int64_t batch = u_.size(0), L = u_.size(1), d_inner = u_.size(2), d_state = A_.size(1);
  const Tensor D_ = s.D ? real(*s.D) : at::zeros({d_inner}, at::kDouble);
  const Tensor bias_ = s.delta_bias ? real(*s.delta_bias) : at::zeros({d_inner}, at::kDouble);
  const Tensor z_ = s.z ? real(*s.z) : at::zeros_like(u_);
  const Tensor mask_ = s.flags.mask ? s.flags.mask->contiguous() : at::ones({batch, L}, at::kBool);
  const Tensor starts_ = s.flags.segment_starts ? s.flags.segment_starts->contiguous()
                                                : at::zeros({batch, L}, at::kBool);
  Tensor h_ = s.initial_state ? real(*s.initial_state).clone()
                              : at::zeros({batch, d_inner, d_state}, at::kDouble);
  Tensor out_ = at::empty_like(u_);
  const auto u = u_.accessor<double, 3>(), delta = delta_.accessor<double, 3>(),
             B = B_.accessor<double, 3>(), C = C_.accessor<double, 3>(),
             z = z_.accessor<double, 3>();
  const auto A = A_.accessor<double, 2>();
  const auto D = D_.accessor<double, 1>(), bias = bias_.accessor<double, 1>();
  const auto mask = mask_.accessor<bool, 2>(), starts = starts_.accessor<bool, 2>();
  auto h = h_.accessor<double, 3>(), out = out_.accessor<double, 3>();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < L; ++t) {
      for (int64_t c = 0; c < d_inner; ++c) {
        const double raw = delta[b][t][c] + bias[c];
        const double dt = mask[b][t] ? (s.softplus ? softplus(raw) : raw) : 0.0;
        double y = D[c] * u[b][t][c];
        for (int64_t n = 0; n < d_state; ++n) {
          const double before = starts[b][t] ? 0.0 : h[b][c][n];
          h[b][c][n] = std::exp(dt * A[c][n]) * before + dt * B[b][t][n] * u[b][t][c];
          y += C[b][t][n] * h[b][c][n];
        }
        out[b][t][c] = s.z ? y * z[b][t][c] / (1.0 + std::exp(-z[b][t][c])) : y;
      }
    }
  }
  return {out_, h_};
}

double tolerance(int64_t L) { return L <= 256 ? 2e-6 : 1e-5; }

TEST(SelectiveScan, MatchesFp64ReferenceAtAllSizes) {
  for (const int64_t L : {1, 2, 31, 60, 129, 1134}) {
    for (const int64_t d_inner : {1, 37, 256}) {
      for (const int64_t d_state : {1, 16, 5}) {
        const Scan s = make_scan(L > 1000 ? 1 : 2, L, d_inner, d_state);
        const auto [out, last] = reference(s);
        for_each_capability([&, &out = out, &last = last] {
          SCOPED_TRACE("L " + std::to_string(L) + ", d_inner " + std::to_string(d_inner) +
                       ", d_state " + std::to_string(d_state));
          const auto [actual_out, actual_last] = s.run();
          expect_close(actual_out, out, tolerance(L), "out");
          expect_close(actual_last, last, tolerance(L), "last_state");
        });
      }
    }
  }
}

TEST(SelectiveScan, Bf16MatchesFp64ReferenceOnTheRoundedInputs) {
  for (const int64_t L : {1, 31, 129, 1134}) {
    for (const int64_t d_state : {16, 5}) {
      const Scan s = make_scan(1, L, 37, d_state, at::kBFloat16);
      const auto [out, last] = reference(s);
      for_each_capability([&, &out = out, &last = last] {
        const auto [actual_out, actual_last] = s.run();
        EXPECT_EQ(actual_out.scalar_type(), at::kBFloat16);
        EXPECT_EQ(actual_last.scalar_type(), at::kFloat);
        expect_close(actual_out, out, 1e-2, "out");
        // The state never leaves fp32.
        expect_close(actual_last, last, tolerance(L), "last_state");
      });
    }
  }
}

TEST(SelectiveScan, Fp64IsFp64Throughout) {
  const Scan s = make_scan(2, 129, 37, 5, at::kDouble);
  const auto [out, last] = reference(s);
  const auto [actual_out, actual_last] = s.run();
  expect_close(actual_out, out, 1e-13, "out");
  expect_close(actual_last, last, 1e-13, "last_state");
}

TEST(SelectiveScan, EachOptionAloneMatchesTheReference) {
  const Scan all = make_scan(2, 31, 37, 16);
  Scan none = all;
  none.D = none.z = none.delta_bias = none.initial_state = std::nullopt;
  none.flags = {};
  none.softplus = false;
  none.delta = none.delta.abs();
  std::vector<Scan> variants(8, none);
  variants[1].D = all.D;
  variants[2].z = all.z;
  variants[3].delta_bias = all.delta_bias->abs();
  variants[4].softplus = true;
  variants[5].flags.mask = all.flags.mask;
  variants[6].flags.segment_starts = all.flags.segment_starts;
  variants[7].initial_state = all.initial_state;
  for (size_t i = 0; i < variants.size(); ++i) {
    SCOPED_TRACE("variant " + std::to_string(i));
    const auto [out, last] = reference(variants[i]);
    for_each_capability([&, &out = out, &last = last] {
      const auto [actual_out, actual_last] = variants[i].run();
      expect_close(actual_out, out, 2e-6, "out");
      expect_close(actual_last, last, 2e-6, "last_state");
    });
  }
}

/// Outputs and all gradients; the loss weighs outputs and last state by fixed numbers.
std::vector<Tensor> outputs_and_gradients(const Scan& scan) {
  Scan s = scan;
  std::vector<Tensor> leaves;
  const auto leaf = [&](const Tensor& t) {
    leaves.push_back(t.detach().clone().requires_grad_());
    return leaves.back();
  };
  s.u = leaf(s.u), s.delta = leaf(s.delta), s.A = leaf(s.A), s.B = leaf(s.B), s.C = leaf(s.C);
  for (OptionalTensor* t : {&s.D, &s.z, &s.delta_bias, &s.initial_state}) {
    if (*t) *t = leaf(**t);
  }
  auto [out, last] = s.run();
  const auto weights = [](const Tensor& t) {
    return at::arange(t.numel(), t.options().dtype(at::kDouble)).mul(0.7).sin().view(t.sizes());
  };
  ((out * weights(out)).sum() + (last * weights(last)).sum()).backward();
  std::vector<Tensor> results{out.detach(), last.detach()};
  for (const Tensor& t : leaves) results.push_back(t.grad());
  return results;
}

TEST(SelectiveScan, GradientsOfEachInstructionSetMatchFp64) {
  // gradcheck holds the fp64 kernels to account; these hold the vector kernels to the fp64 ones.
  for (const int64_t L : {1, 60, 64, 65, 129, 300}) {
    for (const int64_t d_inner : {1, 37, 130}) {
      for (const int64_t d_state : {1, 16, 5}) {
        const Scan s = make_scan(2, L, d_inner, d_state);
        Scan exact = s;
        for (Tensor* t : {&exact.u, &exact.delta, &exact.A, &exact.B, &exact.C}) {
          *t = t->to(at::kDouble);
        }
        for (OptionalTensor* t : {&exact.D, &exact.z, &exact.delta_bias, &exact.initial_state}) {
          *t = (*t)->to(at::kDouble);
        }
        const auto expected = outputs_and_gradients(exact);
        for_each_capability([&] {
          SCOPED_TRACE("L " + std::to_string(L) + ", d_inner " + std::to_string(d_inner) +
                       ", d_state " + std::to_string(d_state));
          const auto actual = outputs_and_gradients(s);
          const char* names[] = {"out", "last", "du", "ddelta", "dA",    "dB",
                                 "dC",  "dD",   "dz", "dbias",  "dstate"};
          for (size_t i = 0; i < expected.size(); ++i) {
            expect_close(actual[i], expected[i], 1e-5, names[i]);
          }
        });
      }
    }
  }
}

TEST(SelectiveScan, SameBitsForAnyNumberOfThreads) {
  struct Sizes {
    int64_t batch, L, d_inner, d_state;
  };
  for (const Sizes& n : {Sizes{1, 300, 1024, 16}, {9, 60, 40, 16}, {2, 129, 300, 5}}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
      const Scan s = make_scan(n.batch, n.L, n.d_inner, n.d_state, dtype);
      expect_same_bits_for_any_threads([&] { return outputs_and_gradients(s); });
    }
  }
}

TEST(SelectiveScan, StridedInputsGiveTheSameBits) {
  const Scan s = make_scan(2, 31, 37, 5);
  Scan views = s;
  for (Tensor* t : {&views.u, &views.delta, &views.A, &views.B, &views.C}) *t = strided(*t);
  for (OptionalTensor* t : {&views.D, &views.z, &views.delta_bias, &views.flags.mask,
                            &views.flags.segment_starts, &views.initial_state}) {
    *t = strided(**t);
  }
  ASSERT_FALSE(views.u.is_contiguous());
  const auto [out, last] = s.run();
  const auto [view_out, view_last] = views.run();
  EXPECT_TRUE(at::equal(out, view_out));
  EXPECT_TRUE(at::equal(last, view_last));
  // Halves of one projection, as the Mamba block hands them over.
  const auto halves = at::cat({s.u, *s.z}, 2).chunk(2, 2);
  views = s;
  views.u = halves[0], views.z = halves[1];
  EXPECT_TRUE(at::equal(std::get<0>(views.run()), out));
}

TEST(SelectiveScan, BroadcastInputsGiveTheSameBits) {
  const Scan s = make_scan(1, 31, 37, 5);
  Scan wide = s;
  for (Tensor* t : {&wide.u, &wide.delta, &wide.B, &wide.C}) *t = t->expand({3, -1, -1});
  wide.z = s.z->expand({3, -1, -1});
  wide.initial_state = s.initial_state->expand({3, -1, -1});
  wide.flags = {s.flags.mask->expand({3, -1}), s.flags.segment_starts->expand({3, -1})};
  wide.A = s.A.narrow(1, 0, 1).expand({-1, 5});
  Scan copied = wide;
  copied.A = wide.A.contiguous(), copied.u = wide.u.contiguous();
  EXPECT_TRUE(at::equal(std::get<0>(wide.run()), std::get<0>(copied.run())));
}

TEST(SelectiveScan, StepByStepEqualsTheWholeScan) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const int64_t d_state : {16, 5}) {
      Scan s = make_scan(3, 31, 37, d_state, dtype);
      s.flags = {};
      for_each_capability([&] {
        const auto [out, last] = s.run();
        // A state in either layout, as given or with contiguous channels.
        for (Tensor state : {s.initial_state->clone(),
                             s.initial_state->transpose(1, 2).contiguous().transpose(1, 2)}) {
          std::vector<Tensor> outs;
          const void* memory = state.data_ptr();
          for (int64_t t = 0; t < s.u.size(1); ++t) {
            const auto at = [&](const Tensor& x) { return x.select(1, t); };
            outs.push_back(selective_state_update(state, at(s.u), at(s.delta), s.A, at(s.B),
                                                  at(s.C), s.D, at(*s.z), s.delta_bias,
                                                  s.softplus));
          }
          EXPECT_EQ(state.data_ptr(), memory);
          expect_close(at::stack(outs, 1), out, dtype == at::kBFloat16 ? 1e-2 : 2e-7, "out");
          expect_close(state, last, 2e-7, "state");
        }
      });
    }
  }
}

TEST(SelectiveScan, InitialStateChainsTwoHalvesToTheWhole) {
  const Scan s = make_scan(2, 129, 37, 16);
  for_each_capability([&] {
    const auto [out, last] = s.run();
    for (const int64_t cut : {1, 64, 128}) {
      const auto [first, middle] = s.slice(0, cut, s.initial_state).run();
      const auto [second, end] = s.slice(cut, 129, middle).run();
      expect_close(at::cat({first, second}, 1), out, 2e-7, "out");
      expect_close(end, last, 2e-7, "last_state");
    }
  });
}

TEST(SelectiveScan, PackedSegmentsEqualSeparateRuns) {
  Scan s = make_scan(2, 31, 37, 16);
  const std::vector<int64_t> bounds{0, 3, 4, 20, 31};
  s.flags.segment_starts = at::zeros({2, 31}, at::kBool);
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    s.flags.segment_starts->select(1, bounds[i]).fill_(true);
  }
  for_each_capability([&] {
    const auto [out, last] = s.run();
    for (size_t i = 0; i + 1 < bounds.size(); ++i) {
      Scan part = s.slice(bounds[i], bounds[i + 1], std::nullopt);
      part.flags.segment_starts = std::nullopt;
      const auto [part_out, part_last] = part.run();
      expect_close(out.slice(1, bounds[i], bounds[i + 1]), part_out, 2e-7, "out");
      if (bounds[i + 1] == 31) expect_close(last, part_last, 2e-7, "last_state");
    }
  });
}

TEST(SelectiveScan, MaskedTokensLeaveTheStateWhateverTheyHold) {
  Scan s = make_scan(2, 31, 37, 16);
  s.flags = {at::ones({2, 31}, at::kBool), std::nullopt};
  s.flags.mask->slice(1, 0, 11).fill_(false);
  // Padding that would poison everything after it.
  s.delta.slice(1, 0, 11).fill_(std::nan(""));
  s.B.slice(1, 0, 11).fill_(INFINITY);
  for_each_capability([&] {
    const auto [out, last] = s.run();
    Scan rest = s.slice(11, 31, s.initial_state);
    rest.flags = {};
    const auto [rest_out, rest_last] = rest.run();
    expect_close(out.slice(1, 11), rest_out, 2e-7, "out");
    expect_close(last, rest_last, 2e-7, "last_state");
  });
}

TEST(SelectiveScan, EmptyBatchGivesEmptyResults) {
  const Scan s = make_scan(2, 3, 5, 4);
  Scan empty = s;
  for (Tensor* t : {&empty.u, &empty.delta, &empty.B, &empty.C}) *t = t->slice(0, 0, 0);
  empty.z = s.z->slice(0, 0, 0);
  empty.flags = {s.flags.mask->slice(0, 0, 0), s.flags.segment_starts->slice(0, 0, 0)};
  empty.initial_state = s.initial_state->slice(0, 0, 0);
  const auto results = outputs_and_gradients(empty);
  EXPECT_EQ(results[0].sizes(), at::IntArrayRef({0, 3, 5}));
  EXPECT_EQ(results[4].abs().sum().item<double>(), 0.0) << "dA of no sequences is zero";
}

TEST(SelectiveScan, ErrorsNameOpArgumentAndShapes) {
  Scan s = make_scan(2, 31, 37, 5);
  s.delta = s.delta.slice(1, 0, 30);
  EXPECT_EQ(message_of([&] { s.run(); }),
            "selective_scan: delta must be (batch, L, d_inner) = [2, 31, 37], got [2, 30, 37]");
  Tensor state = at::zeros({2, 37, 4});
  EXPECT_EQ(message_of([&] {
              selective_state_update(state, s.u.select(1, 0), s.u.select(1, 0), s.A,
                                     s.B.select(1, 0), s.C.select(1, 0));
            }),
            "selective_state_update: initial_state must be (batch, d_inner, d_state) = "
            "[2, 37, 5], got [2, 37, 4]");
}

TEST(SelectiveScan, UpdateRefusesAStateThatSharesMemoryWithItself) {
  const Scan s = make_scan(2, 1, 37, 5);
  const auto message = [&](Tensor state) {
    return message_of([&] {
      selective_state_update(state, s.u.select(1, 0), s.delta.select(1, 0), s.A, s.B.select(1, 0),
                             s.C.select(1, 0));
    });
  };
  EXPECT_EQ(message(at::zeros({1, 37, 5}).expand({2, 37, 5})),
            "selective_state_update: state of [2, 37, 5] is written in place, but its strides "
            "[0, 5, 1] let elements share memory (as expand does); pass state.clone()");
  EXPECT_NE(message(at::zeros({400}).as_strided({2, 37, 5}, {185, 1, 1})).find("share memory"),
            std::string::npos);
  for (Tensor good : {at::zeros({2, 37, 5}), at::zeros({2, 5, 37}).transpose(1, 2),
                      at::zeros({4, 74, 10}).slice(0, 0, 4, 2).slice(1, 0, 37).slice(2, 0, 5)}) {
    EXPECT_NO_THROW(selective_state_update(good, s.u.select(1, 0), s.delta.select(1, 0), s.A,
                                           s.B.select(1, 0), s.C.select(1, 0)));
  }
}

}  // namespace
}  // namespace dmamba::ops::testing
