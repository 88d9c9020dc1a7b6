// Every token mixer keeps the rules of the seam; each against a reference of its own.
#include <complex>
#include <map>

#include "dmamba/common/error.h"
#include "dmamba/nn/token_mixer.h"
#include "src/nn/channel_ssm.h"
#include "tests/cpp/nn/test_support.h"

namespace dmamba::nn {
namespace {

using namespace testing;
using torch::Tensor;

config::ModelConfig small_config() {
  config::ModelConfig config;
  config.d_model = 12;
  config.d_state = 6;
  config.n_head = 3;
  config.conv_window = 4;
  config.channel_group = 4;
  config.context_length = 7;
  config.dropout = 0.0;
  return config;
}

/// fp64, with its parameters by name.
struct Mixer {
  explicit Mixer(const std::string& name, const config::ModelConfig& config = small_config()) {
    torch::manual_seed(3);
    module = make_token_mixer(name, config);
    module->to(torch::kDouble);
    for (const auto& item : module->named_parameters()) parameters[item.key()] = item.value();
  }
  Tensor forward(const Tensor& x, const ops::TokenFlags& flags = {}) const {
    return module->forward(x, flags);
  }
  std::shared_ptr<TokenMixer> module;
  std::map<std::string, Tensor> parameters;
};

Tensor normal(at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble); }

/// By steps of these lengths, from a new state or a given one.
Tensor by_steps(TokenMixer& mixer, const Tensor& x, const ops::TokenFlags& flags,
                const std::vector<int64_t>& lengths, MixerState& state) {
  std::vector<Tensor> parts;
  int64_t first = 0;
  for (const int64_t length : lengths) {
    ops::TokenFlags part;
    part.first_kind = (flags.first_kind + first) % 3;
    if (flags.mask) part.mask = flags.mask->narrow(1, first, length);
    if (flags.segment_starts) part.segment_starts = flags.segment_starts->narrow(1, first, length);
    parts.push_back(mixer.step(x.narrow(1, first, length), part, state));
    first += length;
  }
  return torch::cat(parts, 1);
}

class EachMixer : public ::testing::TestWithParam<std::string> {};

TEST_P(EachMixer, SeesNoLaterToken) {
  const Mixer mixer(GetParam());
  torch::NoGradGuard no_grad;
  const Tensor x = normal({2, 11, 12});
  Tensor changed = x.clone();
  changed.slice(1, 6).add_(1.0);
  const Tensor y = mixer.forward(x), z = mixer.forward(changed);
  EXPECT_LE((y - z).slice(1, 0, 6).abs().max().item<double>(), 1e-14);
  EXPECT_GT((y - z).slice(1, 6, 7).abs().max().item<double>(), 1e-6);
}

TEST_P(EachMixer, PaddingInFrontChangesNothing) {
  const Mixer mixer(GetParam());
  torch::NoGradGuard no_grad;
  const Tensor x = normal({2, 6, 12}), padded = torch::cat({normal({2, 3, 12}), x}, 1);
  ops::TokenFlags flags;
  flags.mask = (torch::arange(9) >= 3).expand({2, 9});
  EXPECT_LE(relative_error(mixer.forward(padded, flags).slice(1, 3), mixer.forward(x)), 1e-12);
}

TEST_P(EachMixer, SegmentsKnowNothingOfEachOther) {
  const Mixer mixer(GetParam());
  torch::NoGradGuard no_grad;
  const Tensor a = normal({2, 6, 12}), b = normal({2, 3, 12});  // a whole number of kinds
  ops::TokenFlags flags;
  flags.segment_starts = (torch::arange(9) == 6).expand({2, 9});
  const Tensor expected = torch::cat({mixer.forward(a), mixer.forward(b)}, 1);
  EXPECT_LE(relative_error(mixer.forward(torch::cat({a, b}, 1), flags), expected), 1e-12);
}

TEST_P(EachMixer, StepsOfAnyLengthEqualForward) {
  const Mixer mixer(GetParam());
  torch::NoGradGuard no_grad;
  const Tensor x = normal({3, 18, 12});
  ops::TokenFlags flags;
  flags.mask = torch::rand({3, 18}) > 0.2;
  flags.segment_starts = torch::rand({3, 18}) < 0.15;
  flags.first_kind = 2;
  const Tensor expected = mixer.forward(x, flags);
  for (const std::vector<int64_t>& lengths :
       {std::vector<int64_t>{18}, {1, 1, 3, 3, 2, 8}, std::vector<int64_t>(18, 1)}) {
    const auto state = mixer.module->initial_state(3);
    EXPECT_LE(relative_error(by_steps(*mixer.module, x, flags, lengths, *state), expected), 1e-11);
  }
}

TEST_P(EachMixer, AStateIsTakenOverSequenceBySequence) {
  const Mixer mixer(GetParam());
  torch::NoGradGuard no_grad;
  const Tensor x = normal({2, 5, 12}), y = normal({2, 4, 12}), next = normal({2, 3, 12});
  const auto one = mixer.module->initial_state(2), other = mixer.module->initial_state(2);
  mixer.module->step(x, {}, *one);
  mixer.module->step(y, {}, *other);
  one->take(torch::tensor({false, true}), *other);
  ops::TokenFlags first_goes_on, second_goes_on;
  first_goes_on.first_kind = 5 % 3;
  second_goes_on.first_kind = 4 % 3;
  const Tensor taken = mixer.module->step(next, second_goes_on, *one);
  EXPECT_LE(relative_error(taken[1], mixer.forward(torch::cat({y, next}, 1))[1].slice(0, 4)),
            1e-11);
  const auto again = mixer.module->initial_state(2);
  mixer.module->step(x, {}, *again);
  again->take(torch::tensor({false, true}), *other);
  EXPECT_LE(relative_error(mixer.module->step(next, first_goes_on, *again)[0],
                           mixer.forward(torch::cat({x, next}, 1))[0].slice(0, 5)),
            1e-11);
}

TEST_P(EachMixer, GradientsAreThoseOfDifferences) {
  const Mixer mixer(GetParam());
  ops::TokenFlags flags;
  flags.mask = (torch::arange(7) >= 2).expand({2, 7});
  const Tensor x = normal({2, 7, 12}), weight = normal({2, 7, 12});
  const auto value = [&](const Tensor& input) {
    return (mixer.forward(input, flags) * weight).sum();
  };
  Tensor leaf = x.clone().requires_grad_();
  value(leaf).backward();
  torch::NoGradGuard no_grad;
  constexpr double kStep = 1e-6;
  const Tensor direction = normal(x.sizes());
  const double expected =
      (value(x + kStep * direction) - value(x - kStep * direction)).item<double>() / (2 * kStep);
  EXPECT_NEAR((leaf.grad() * direction).sum().item<double>(), expected, 1e-6 * std::abs(expected));
  for (const auto& [name, parameter] : mixer.parameters) {
    ASSERT_TRUE(parameter.grad().defined()) << name;
    const Tensor along = normal(parameter.sizes());
    Tensor there = parameter;
    there.add_(along, kStep);
    const double after = value(x).item<double>();
    there.sub_(along, 2 * kStep);
    const double difference = (after - value(x).item<double>()) / (2 * kStep);
    there.add_(along, kStep);
    EXPECT_NEAR((parameter.grad() * along).sum().item<double>(), difference,
                1e-5 * std::max(1.0, std::abs(difference)))
        << name;
  }
}

TEST_P(EachMixer, WorksUnderAutocast) {
  const Mixer exact(GetParam());
  const Tensor x = normal({2, 9, 12});
  const Tensor expected = exact.forward(x);
  torch::manual_seed(3);
  const auto mixer = make_token_mixer(GetParam(), small_config());
  const AutocastGuard guard;
  const Tensor y = mixer->forward(x.to(torch::kFloat), {});
  y.sum().backward();
  EXPECT_LE(relative_error(y, expected), 5e-2);
  for (const auto& p : mixer->parameters()) EXPECT_EQ(p.grad().scalar_type(), torch::kFloat);
}

INSTANTIATE_TEST_SUITE_P(TokenMixers, EachMixer, ::testing::ValuesIn(token_mixer_names()),
                         [](const auto& info) { return info.param; });

TEST(Attention, IsTheSoftmaxOfTheDefinition) {
  const Mixer mixer("attention");
  torch::NoGradGuard no_grad;
  const Tensor x = normal({2, 5, 12});
  const Tensor qkv =
      torch::linear(x, mixer.parameters.at("c_attn.weight"), mixer.parameters.at("c_attn.bias"));
  Tensor y = torch::zeros_like(x);
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t head = 0; head < 3; ++head) {
      for (int64_t t = 0; t < 5; ++t) {
        const auto part = [&](int64_t which, int64_t token) {
          return qkv[b][token].narrow(0, 12 * which + 4 * head, 4);
        };
        std::vector<double> weights;
        double total = 0.0;
        for (int64_t s = 0; s <= t; ++s) {
          weights.push_back(std::exp((part(0, t) * part(1, s)).sum().item<double>() / 2.0));
          total += weights.back();
        }
        for (int64_t s = 0; s <= t; ++s) {
          y[b][t].narrow(0, 4 * head, 4).add_(part(2, s), weights[static_cast<size_t>(s)] / total);
        }
      }
    }
  }
  const Tensor expected =
      torch::linear(y, mixer.parameters.at("c_proj.weight"), mixer.parameters.at("c_proj.bias"));
  EXPECT_LE(relative_error(mixer.forward(x), expected), 1e-12);
}

TEST(Attention, StepsSeeTheLastTokensThatAContextHolds) {
  config::ModelConfig config = small_config();
  config.context_length = 2;  // six tokens
  const Mixer mixer("attention", config);
  torch::NoGradGuard no_grad;
  const Tensor x = normal({2, 20, 12});
  const auto state = mixer.module->initial_state(2);
  const Tensor y = by_steps(*mixer.module, x, {}, std::vector<int64_t>(20, 1), *state);
  for (int64_t t = 0; t < 20; ++t) {
    const int64_t first = std::max<int64_t>(0, t - 5);
    const Tensor seen = mixer.forward(x.slice(1, first, t + 1)).select(1, t - first);
    EXPECT_LE(relative_error(y.select(1, t), seen), 1e-12) << t;
  }
}

TEST(Convolution, HasAFilterForEachKindOfToken) {
  const Mixer mixer("convolution");
  torch::NoGradGuard no_grad;
  const Tensor x = normal({2, 8, 12});
  const std::vector<std::string> names{"rtg_conv1d", "obs_conv1d", "act_conv1d"};
  for (const int64_t first_kind : {0, 1, 2}) {
    Tensor expected = torch::zeros_like(x);
    for (int64_t t = 0; t < 8; ++t) {
      const std::string& name = names[static_cast<size_t>((t + first_kind) % 3)];
      const Tensor weight = mixer.parameters.at(name + ".weight");  // (12, 1, 4)
      Tensor sum = mixer.parameters.at(name + ".bias").expand({2, 12}).clone();
      for (int64_t j = 0; j < 4; ++j) {
        if (t - 3 + j >= 0) sum += weight.select(2, j).squeeze(1) * x.select(1, t - 3 + j);
      }
      expected.select(1, t).copy_(sum);
    }
    ops::TokenFlags flags;
    flags.first_kind = first_kind;
    EXPECT_LE(relative_error(mixer.forward(x, flags), expected), 1e-13) << first_kind;
  }
}

TEST(Convolution, HasNoFilterForTokensThatThereAreNot) {
  config::ModelConfig config = small_config();
  config.rtg = "none";
  const Mixer mixer("convolution", config);
  EXPECT_EQ(mixer.parameters.size(), 4U);  // two filters with their biases
  EXPECT_FALSE(mixer.parameters.contains("rtg_conv1d.weight"));
}

TEST(S4d, IsTheRecurrenceOfTheDefinition) {
  const Mixer mixer("s4d");
  torch::NoGradGuard no_grad;
  const Tensor x = normal({1, 9, 12});
  const auto at = [&](const char* name, std::initializer_list<int64_t> index) {
    Tensor t = mixer.parameters.at(name);
    for (const int64_t i : index) t = t[i];
    return t.item<double>();
  };
  Tensor y = torch::zeros_like(x);
  for (int64_t c = 0; c < 12; ++c) {
    for (int64_t n = 0; n < 3; ++n) {
      const std::complex<double> A(-std::exp(at("log_A_real", {c, n})), at("A_imag", {c, n}));
      const std::complex<double> C(at("C", {c, n, 0}), at("C", {c, n, 1}));
      const std::complex<double> decay = std::exp(A * std::exp(at("log_dt", {c})));
      std::complex<double> h = 0.0;
      for (int64_t t = 0; t < 9; ++t) {
        h = decay * h + (decay - 1.0) / A * x[0][t][c].item<double>();
        y[0][t][c] += 2.0 * (C * h).real();
      }
    }
  }
  y += mixer.parameters.at("D") * x;
  const Tensor expected =
      torch::glu(torch::linear(torch::gelu(y), mixer.parameters.at("output_linear.weight"),
                               mixer.parameters.at("output_linear.bias")));
  EXPECT_LE(relative_error(mixer.forward(x), expected), 1e-11);
}

TEST(ChannelSsm, WalksTheChannelsOfEachTokenBothWays) {
  torch::manual_seed(4);
  ChannelSsm mixer(small_config());
  mixer->to(torch::kDouble);
  const auto children = mixer->named_children();
  auto *there = children["forward_mamba"]->as<Mamba>(),
       *back = children["backward_mamba"]->as<Mamba>();
  const Tensor x = normal({2, 5, 12}), y = mixer->forward(x);
  for (int64_t t = 0; t < 5; ++t) {
    const Tensor steps = x.select(1, t).view({2, 3, 4});
    const Tensor expected = there->forward(steps, {}) + back->forward(steps.flip(1), {}).flip(1);
    EXPECT_LE(relative_error(y.select(1, t), expected.flatten(1)), 1e-13);
  }
}

TEST(TokenMixers, SizesThatDoNotFitAreNamed) {
  const auto message = [](const char* name, auto change) -> std::string {
    config::ModelConfig config = small_config();
    change(config);
    try {
      make_token_mixer(name, config);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message("attention", [](auto& c) { c.n_head = 5; }),
            "model.n_head: 5 heads do not divide model.d_model, 12");
  EXPECT_EQ(message("s4d", [](auto& c) { c.d_state = 3; }),
            "model.d_state must be even for s4d, whose states are conjugate pairs, got 3");
  EXPECT_EQ(message("convolution", [](auto& c) { c.conv_window = 0; }),
            "model.conv_window must be at least 1, got 0");
  config::ModelConfig config = small_config();
  config.channel_group = 5;
  EXPECT_THROW(ChannelSsm{config}, ConfigError);
}

}  // namespace
}  // namespace dmamba::nn
