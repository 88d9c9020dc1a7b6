// Decision Mamba: golden numbers, learning, causality, padding, the layers' choices, errors.
#include "dmamba/model/dmamba.h"

#include <gtest/gtest.h>

#include "dmamba/common/error.h"
#include "tests/cpp/messages.h"
#include "tests/cpp/model/test_support.h"

namespace dmamba::model {
namespace {

using messages::message_of;
using testing::Inputs;
using testing::make_inputs;
using testing::small_config;
using torch::Tensor;

double largest(const Tensor& t) { return t.abs().max().item<double>(); }

Tensor predict(DMamba& model, const Inputs& in, const ops::OptionalTensor& mask = {}) {
  return model->forward(in.states, in.actions, in.returns_to_go, in.timesteps, mask);
}

TEST(DMamba, GoldenOutputAtAFixedSeed) {
  torch::manual_seed(0);
  DMamba model(3, 2, small_config());
  torch::NoGradGuard no_grad;
  const Tensor out = predict(model, make_inputs(2, 6));
  ASSERT_EQ(out.sizes(), at::IntArrayRef({2, 6, 2}));
  const Tensor some = torch::stack({out[0][0], out[0][5], out[1][0], out[1][5]}).flatten();
  const Tensor golden = torch::tensor(
      {0.0845, -0.0504, -0.2492, -0.5247, 0.1562, -0.0092, -0.1824, -0.4787}, torch::kFloat);
  EXPECT_LE(largest(some - golden), 1e-4) << some;  // recorded to four digits
}

TEST(DMamba, OverfitsATinyBatch) {
  for (const char* mixing : {"mlp", "none"}) {
    torch::manual_seed(1);
    config::ModelConfig config = small_config();
    config.channel_mixing = mixing;
    DMamba model(3, 2, config);
    const Inputs in = make_inputs(4, 6);
    torch::optim::Adam optimizer(model->parameters(), 3e-3);
    double first = 0, last = 0;
    for (int step = 0; step < 300; ++step) {
      optimizer.zero_grad();
      const Tensor loss = (predict(model, in) - in.actions).square().mean();
      loss.backward();
      optimizer.step();
      last = loss.item<double>();
      if (step == 0) first = last;
    }
    EXPECT_GT(first, 0.1);
    EXPECT_LT(last, 1e-3) << mixing;
  }
}

TEST(DMamba, ActionSeesItsStateAndThePastOnly) {
  torch::manual_seed(2);
  DMamba model(3, 2, small_config());
  torch::NoGradGuard no_grad;
  const Inputs in = make_inputs(1, 6);
  const Tensor before = predict(model, in);
  const auto first_changed = [&](Tensor Inputs::* field) {
    Inputs other = in;
    other.*field = (in.*field).clone();
    (other.*field).select(1, 3).add_(0.5);
    const Tensor difference = (predict(model, other) - before).abs().amax({0, 2});
    return (difference > 0).nonzero().min().item<int64_t>();
  };
  EXPECT_EQ(first_changed(&Inputs::returns_to_go), 3);
  EXPECT_EQ(first_changed(&Inputs::states), 3);
  EXPECT_EQ(first_changed(&Inputs::actions), 4);
}

TEST(DMamba, TimestepsMatter) {
  torch::manual_seed(2);
  DMamba model(3, 2, small_config());
  Inputs in = make_inputs(1, 6);
  const Tensor before = predict(model, in);
  in.timesteps = in.timesteps + 7;
  EXPECT_GT(largest(predict(model, in) - before), 1e-3);
}

TEST(DMamba, MaskedPaddingEqualsNoPadding) {
  torch::manual_seed(3);
  DMamba model(3, 2, small_config());
  torch::NoGradGuard no_grad;
  const Inputs in = make_inputs(2, 4);
  const Tensor expected = predict(model, in);
  const auto pad = [](const Tensor& t, double value) {
    std::vector<int64_t> sizes = t.sizes().vec();
    sizes[1] = 2;
    return torch::cat({torch::full(sizes, value, t.options()), t}, 1);
  };
  const Inputs padded{pad(in.states, 5), pad(in.actions, -10), pad(in.returns_to_go, 3),
                      pad(in.timesteps, 0)};
  const Tensor mask = torch::cat({torch::zeros({2, 2}), torch::ones({2, 4})}, 1).to(torch::kBool);
  const Tensor out = predict(model, padded, mask);
  EXPECT_LE(largest(out.slice(1, 2) - expected), 1e-6);
  // The paper's padding leaks: the mask changes nothing, the padding does.
  config::ModelConfig paper = small_config();
  paper.padding = "paper";
  torch::manual_seed(3);
  DMamba leaky(3, 2, paper);
  EXPECT_TRUE(torch::equal(predict(leaky, padded, mask), predict(leaky, padded)));
  EXPECT_GT(largest(predict(leaky, padded, mask).slice(1, 2) - expected), 1e-3);
}

TEST(DMamba, PaddingReceivesNoGradientInfluence) {
  torch::manual_seed(3);
  DMamba model(3, 2, small_config());
  Inputs in = make_inputs(1, 6);
  in.states.requires_grad_();
  Tensor mask = torch::ones({1, 6}, torch::kBool);
  mask.slice(1, 0, 2).fill_(false);
  predict(model, in, mask).slice(1, 2).square().sum().backward();
  EXPECT_EQ(largest(in.states.grad().slice(1, 0, 2)), 0.0);
  EXPECT_GT(largest(in.states.grad().slice(1, 2)), 0.0);
}

TEST(DMamba, SequencesOfABatchAreIndependent) {
  torch::manual_seed(4);
  DMamba model(3, 2, small_config());
  torch::NoGradGuard no_grad;
  const Inputs in = make_inputs(3, 6);
  const Tensor all = predict(model, in);
  for (int64_t b = 0; b < 3; ++b) {
    const auto row = [b](const Tensor& t) { return t.narrow(0, b, 1); };
    const Inputs one{row(in.states), row(in.actions), row(in.returns_to_go), row(in.timesteps)};
    EXPECT_LE(largest(predict(model, one) - row(all)), 1e-6) << b;
  }
}

TEST(DMamba, StepsEqualForward) {
  torch::manual_seed(5);
  DMamba model(3, 2, small_config());
  model->eval();
  torch::NoGradGuard no_grad;
  const Inputs in = make_inputs(2, 6);
  const Tensor whole = predict(model, in);
  RecurrentState state = model->initial_state(2);
  for (int64_t t = 0; t < 6; ++t) {
    const Tensor previous = t > 0 ? in.actions.select(1, t - 1) : torch::full({2, 2}, 9.0);
    const Tensor first = torch::full({2}, t == 0, torch::kBool);
    const Tensor out = model->step({previous, in.returns_to_go.select(1, t), in.states.select(1, t),
                                    in.timesteps.select(1, t), first},
                                   state);
    EXPECT_LE(largest(out - whole.select(1, t)), 1e-6) << "step " << t;
  }
}

TEST(DMamba, TokenMixerIsOneWordOrOnePerLayer) {
  config::ModelConfig config = small_config();
  config.token_mixer = {"mamba", "mamba"};
  torch::manual_seed(0);
  DMamba listed(3, 2, config);
  torch::manual_seed(0);
  DMamba word(3, 2, small_config());
  EXPECT_TRUE(torch::equal(predict(listed, make_inputs(1, 6)), predict(word, make_inputs(1, 6))));
  config.token_mixer = {"mamba", "mamba", "mamba"};
  EXPECT_EQ(message_of<ConfigError>([&] { DMamba model(3, 2, config); }),
            "model.token_mixer names 3 mixers for 2 layers (model.n_layer): give one word, or one "
            "per layer");
  config.token_mixer = {"mamba", "hyena"};
  EXPECT_EQ(
      message_of<ConfigError>([&] { DMamba model(3, 2, config); }),
      "model.token_mixer: 'hyena' is unknown; choose one of mamba, attention, convolution, s4d");
}

TEST(DMamba, PaperInitialisationIsGpt2sInTheLayers) {
  config::ModelConfig config = small_config();
  config.d_model = 128;
  config.initialization = "paper";
  torch::manual_seed(0);
  DMamba model(3, 2, config);
  const auto parameters = model->named_parameters();
  for (const char* name : {"in_proj", "x_proj", "dt_proj", "out_proj"}) {
    const Tensor& weight = parameters["transformer.h.1.mamba." + std::string(name) + ".weight"];
    EXPECT_NEAR(weight.std().item<double>(), 0.02, 0.002) << name;
  }
  EXPECT_EQ(largest(parameters["transformer.h.0.mamba.dt_proj.bias"]), 0.0);
  // Embeddings and head are torch's own.
  EXPECT_GT(parameters["embed_state.weight"].std().item<double>(), 0.2);
}

TEST(DMamba, ConstructionErrorsNameTheValue) {
  const auto message = [](int64_t state_dim, int64_t act_dim, auto change) {
    config::ModelConfig config = small_config();
    change(config);
    return message_of<ConfigError>([&] { DMamba model(state_dim, act_dim, config); });
  };
  const auto same = [](config::ModelConfig&) {};
  EXPECT_EQ(message(0, 2, same), "DMamba: state_dim must be at least 1, got 0");
  EXPECT_EQ(message(3, -1, same), "DMamba: act_dim must be at least 1, got -1");
  EXPECT_EQ(message(3, 2, [](auto& c) { c.n_layer = 0; }),
            "DMamba: n_layer must be at least 1, got 0");
  EXPECT_EQ(message(3, 2, [](auto& c) { c.padding = "zeros"; }),
            "model.padding: 'zeros' is unknown; choose one of masked, paper");
  EXPECT_EQ(message(3, 2, [](auto& c) { c.initialization = "xavier"; }),
            "model.initialization: 'xavier' is unknown; choose one of mamba, paper");
}

TEST(DMamba, InputErrorsNameArgumentAndShapes) {
  DMamba model(3, 2, small_config());
  const auto message = [&](Inputs in, const ops::OptionalTensor& mask = {}) {
    try {
      predict(model, in, mask);
    } catch (const c10::Error& error) {
      return std::string(error.what_without_backtrace());
    }
    return std::string("no error");
  };
  const Inputs good = make_inputs(2, 6);
  Inputs bad = good;
  bad.states = torch::zeros({2, 6, 4});
  EXPECT_EQ(message(bad), "DMamba: states must be (batch, K, state_dim = 3), got [2, 6, 4]");
  bad = good;
  bad.actions = torch::zeros({2, 5, 2});
  EXPECT_EQ(message(bad),
            "DMamba: actions must be [2, 6, 2] to go with states of [2, 6, 3], got [2, 5, 2]");
  bad = good;
  bad.returns_to_go = torch::zeros({2, 6});
  EXPECT_NE(message(bad).find("returns_to_go must be [2, 6, 1]"), std::string::npos);
  bad = good;
  bad.timesteps = good.timesteps.to(torch::kFloat);
  EXPECT_EQ(message(bad), "DMamba: timesteps must be int64, got Float");
  EXPECT_EQ(message(good, torch::ones({2, 6})), "DMamba: mask must be bool, got Float");
  EXPECT_EQ(message(make_inputs(2, 0)), "DMamba: K must be at least 1, got states of [2, 0, 3]");
  bad = good;
  bad.states = good.states.to(torch::kDouble);
  EXPECT_EQ(message(bad),
            "DMamba: states must be float32, as the model's parameters are, got Double");
  bad = good;
  bad.returns_to_go = torch::zeros({2, 6, 1}, torch::kLong);
  EXPECT_EQ(message(bad),
            "DMamba: returns_to_go must be float32, as the model's parameters are, got Long");
  model->to(torch::kDouble);
  EXPECT_EQ(message(good),
            "DMamba: states must be float64, as the model's parameters are, got Float");
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    model->to(dtype);
    EXPECT_NE(message(good).find("DMamba: the model's parameters must be float32 (or float64)"),
              std::string::npos);
    EXPECT_NE(message(good).find("torch.autocast"), std::string::npos);
    EXPECT_THROW(model->initial_state(1), c10::Error);
  }
}

}  // namespace
}  // namespace dmamba::model
