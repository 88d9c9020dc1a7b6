// AdamW against its equations in fp64, decay groups, the clip.
#include "dmamba/train/optimizer.h"

#include <map>
#include <set>

#include "tests/cpp/train/test_support.h"

namespace dmamba::train {
namespace {

using testing::expect_contains;
using testing::make_model;
using testing::message_of;
using testing::small_run;
using torch::Tensor;

/// A gradient for each parameter that depends on step and position alone.
Tensor made_up_gradient(const Tensor& parameter, int64_t step) {
  const Tensor i = torch::arange(parameter.numel(), torch::kDouble);
  return (i * 0.31 + static_cast<double>(step)).sin().view(parameter.sizes());
}

void set_gradients(AdamW& optimizer, int64_t step, double scale = 1.0) {
  for (const Slot& slot : optimizer.slots()) {
    Tensor parameter = slot.parameter;
    parameter.mutable_grad() =
        (made_up_gradient(parameter, step) * scale).to(parameter.scalar_type());
  }
}

bool in_decayed_group(const std::string& name) {
  static const std::set<std::string> undecayed{"embed_timestep.weight",
                                               "embed_return.bias",
                                               "embed_state.bias",
                                               "embed_action.bias",
                                               "embed_ln.weight",
                                               "embed_ln.bias",
                                               "predict_action.0.bias",
                                               "transformer.ln_f.weight",
                                               "transformer.ln_f.bias",
                                               "transformer.h.0.norm_mamba.weight",
                                               "transformer.h.0.norm_mamba.bias",
                                               "transformer.h.0.ln_2.weight",
                                               "transformer.h.0.ln_2.bias",
                                               "transformer.h.0.mlp_channels.0.bias",
                                               "transformer.h.0.mlp_channels.2.bias",
                                               "transformer.h.0.mamba.A_log",
                                               "transformer.h.0.mamba.D",
                                               "transformer.h.0.mamba.conv1d.bias",
                                               "transformer.h.0.mamba.dt_proj.bias"};
  return undecayed.count(name) == 0;
}

TEST(AdamW, MatchesTheEquationsInBothDecaySettings) {
  for (const char* decay : {"matrices", "all"}) {
    const config::Config run = small_run();
    config::TrainingConfig training = run.training;
    training.decay = decay;
    training.weight_decay = 0.1;
    training.gradient_clip = 0.0;
    model::DMamba model = make_model(run);
    AdamW optimizer(*model, training);
    struct Reference {
      Tensor p, m, v;
    };
    std::map<std::string, Reference> references;
    for (const Slot& slot : optimizer.slots()) {
      const Tensor p = slot.parameter.detach().to(torch::kDouble).clone();
      references[slot.name] = {p, torch::zeros_like(p), torch::zeros_like(p)};
    }
    ASSERT_EQ(references.size(), model->named_parameters().size());
    for (int64_t step = 1; step <= 5; ++step) {
      const double rate = 1e-2 / static_cast<double>(step);
      set_gradients(optimizer, step);
      optimizer.step(rate);
      for (auto& [name, r] : references) {
        const bool decays = std::string(decay) == "all" || in_decayed_group(name);
        const Tensor g = made_up_gradient(r.p, step);
        r.p = r.p * (1 - rate * (decays ? 0.1 : 0.0));
        r.m = 0.9 * r.m + 0.1 * g;
        r.v = 0.999 * r.v + 0.001 * g * g;
        const double t = static_cast<double>(step);
        const Tensor m = r.m / (1 - std::pow(0.9, t)), v = r.v / (1 - std::pow(0.999, t));
        r.p = r.p - rate * m / (v.sqrt() + 1e-8);
      }
    }
    for (const Slot& slot : optimizer.slots()) {
      const Tensor& expected = references[slot.name].p;
      const double error =
          (slot.parameter.detach().to(torch::kDouble) - expected).abs().max().item<double>();
      EXPECT_LE(error, 2e-6 * (1 + expected.abs().max().item<double>()))
          << decay << " " << slot.name;
    }
  }
}

TEST(AdamW, AFactorScalesStepAndDecayOfItsParametersAlone) {
  config::TrainingConfig training = small_run().training;
  training.decay = "all";
  training.weight_decay = 0.3;
  training.gradient_clip = 0.0;
  model::DMamba plain = make_model(small_run()), slowed = make_model(small_run()),
                tenth = make_model(small_run());
  // The last entry that matches counts.
  const std::vector<std::string> rates{"*=0.5", "transformer.*=0.1", "embed_*=1"};
  AdamW usual(*plain, training), scaled(*slowed, training, rates), small(*tenth, training);
  for (int64_t step = 1; step <= 3; ++step) {
    for (AdamW* optimizer : {&usual, &scaled, &small}) set_gradients(*optimizer, step);
    usual.step(1e-2);
    scaled.step(1e-2);
    small.step(1e-2 * 0.1);
  }
  const auto full = plain->named_parameters(), slow = tenth->named_parameters();
  for (const Slot& slot : scaled.slots()) {
    const bool trunk = slot.name.starts_with("transformer.");
    EXPECT_EQ(slot.rate, trunk ? 0.1 : slot.name.starts_with("embed_") ? 1.0 : 0.5) << slot.name;
    if (trunk) EXPECT_TRUE(torch::equal(slot.parameter, slow[slot.name])) << slot.name;
    if (slot.rate == 1.0) EXPECT_TRUE(torch::equal(slot.parameter, full[slot.name])) << slot.name;
  }
}

TEST(AdamW, AFactorThatMatchesNothingIsAnError) {
  model::DMamba model = make_model(small_run());
  expect_contains(
      message_of<ConfigError>([&] { AdamW(*model, small_run().training, {"head.*=2"}); }),
      {"transfer.learning_rates", "'head.*' matches no parameter"});
}

TEST(AdamW, DecayedParametersComeFirst) {
  model::DMamba model = make_model(small_run());
  const AdamW optimizer(*model, small_run().training);
  bool seen_undecayed = false;
  for (const Slot& slot : optimizer.slots()) {
    seen_undecayed = seen_undecayed || !in_decayed_group(slot.name);
    EXPECT_EQ(in_decayed_group(slot.name), !seen_undecayed) << slot.name;
  }
}

TEST(AdamW, ClipsToTheGlobalNormAndReturnsTheNormBefore) {
  for (const double scale : {1.0, 1e-6}) {
    config::TrainingConfig training = small_run().training;
    training.gradient_clip = 0.25;
    model::DMamba model = make_model(small_run());
    AdamW optimizer(*model, training);
    set_gradients(optimizer, 1, scale);
    double sum = 0;
    for (const Slot& slot : optimizer.slots()) {
      sum += slot.parameter.grad().to(torch::kDouble).square().sum().item<double>();
    }
    const double norm = std::sqrt(sum), factor = std::min(1.0, 0.25 / norm);
    EXPECT_NEAR(optimizer.step(1e-3).item<double>(), norm, 1e-5 * norm);
    // The first moment after one step is a tenth of the clipped gradient.
    for (const Slot& slot : optimizer.slots()) {
      const Tensor expected = 0.1 * scale * factor * made_up_gradient(slot.parameter, 1);
      EXPECT_LE((slot.first_moment - expected).abs().max().item<double>(),
                1e-5 * 0.1 * scale * factor + 1e-12)
          << slot.name;
    }
  }
}

TEST(AdamW, ForgetsGradientsAfterAStep) {
  model::DMamba model = make_model(small_run());
  AdamW optimizer(*model, small_run().training);
  set_gradients(optimizer, 1);
  optimizer.step(1e-3);
  for (const Slot& slot : optimizer.slots()) EXPECT_FALSE(slot.parameter.grad().defined());
}

TEST(AdamW, LeavesEverythingAloneWhereTheNormIsNotFinite) {
  config::TrainingConfig training = small_run().training;
  training.weight_decay = 0.5;
  model::DMamba model = make_model(small_run());
  AdamW optimizer(*model, training);
  const auto state = [&] {
    std::vector<Tensor> all;
    for (const Slot& slot : optimizer.slots()) {
      for (const Tensor& t : {slot.parameter, slot.first_moment, slot.second_moment}) {
        all.push_back(t.detach().clone());
      }
    }
    return all;
  };
  const std::vector<Tensor> before = state();
  // Infinite, NaN, and so large that the sum of squares is infinite in float32.
  for (const double value : {double{INFINITY}, double{NAN}, 1e30}) {
    set_gradients(optimizer, 1);
    optimizer.slots()[3].parameter.mutable_grad().flatten()[0] = value;
    EXPECT_FALSE(std::isfinite(optimizer.step(1e-2).item<double>()));
    for (const Slot& slot : optimizer.slots()) EXPECT_FALSE(slot.parameter.grad().defined());
    const std::vector<Tensor> after = state();
    for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(torch::equal(before[i], after[i])) << i;
  }
  set_gradients(optimizer, 1);
  optimizer.step(1e-2);
  const std::vector<Tensor> moved = state();
  model::DMamba fresh_model = make_model(small_run());
  AdamW fresh(*fresh_model, training);
  set_gradients(fresh, 1);
  fresh.step(1e-2);
  for (size_t i = 0; i < fresh.slots().size(); ++i) {
    EXPECT_TRUE(torch::equal(fresh.slots()[i].parameter, moved[3 * i])) << fresh.slots()[i].name;
  }
}

TEST(AdamW, LeavesFrozenParametersUntouched) {
  config::TrainingConfig training = small_run().training;
  training.decay = "all";
  training.weight_decay = 0.5;
  model::DMamba model = make_model(small_run());
  AdamW optimizer(*model, training);
  const std::set<std::string> frozen{"embed_state.weight", "transformer.h.0.mamba.A_log"};
  std::map<std::string, Tensor> before;
  for (const Slot& slot : optimizer.slots()) {
    before[slot.name] = slot.parameter.detach().clone();
    Tensor parameter = slot.parameter;
    if (frozen.count(slot.name) > 0) parameter.requires_grad_(false);
  }
  set_gradients(optimizer, 1);  // left from before the freeze; it must not count in the norm either
  double sum = 0;
  for (const Slot& slot : optimizer.slots()) {
    if (frozen.count(slot.name) > 0) continue;
    sum += slot.parameter.grad().to(torch::kDouble).square().sum().item<double>();
  }
  EXPECT_NEAR(optimizer.step(1e-2).item<double>(), std::sqrt(sum), 1e-5 * std::sqrt(sum));
  for (const Slot& slot : optimizer.slots()) {
    const bool same = torch::equal(slot.parameter, before[slot.name]);
    EXPECT_EQ(same, frozen.count(slot.name) > 0) << slot.name;
    EXPECT_EQ(slot.first_moment.abs().sum().item<double>() == 0.0, same) << slot.name;
  }
}

TEST(AdamW, NothingToTrainIsAnError) {
  model::DMamba model = make_model(small_run());
  for (Tensor& parameter : model->parameters()) parameter.requires_grad_(false);
  AdamW optimizer(*model, small_run().training);
  expect_contains(message_of<c10::Error>([&] { optimizer.step(1e-3); }),
                  {"AdamW: no parameter requires a gradient"});
}

}  // namespace
}  // namespace dmamba::train
