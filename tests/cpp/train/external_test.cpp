// A model whose forward is somebody else's: here the library's own, called through functions.
#include "dmamba/model/external.h"

#include "dmamba/model/policy.h"
#include "dmamba/train/load_policy.h"
#include "tests/cpp/train/test_support.h"

namespace dmamba::train {
namespace {

using testing::expect_contains;
using testing::make_model;
using testing::make_store;
using testing::message_of;
using testing::same_parameters;
using testing::small_run;
using testing::TemporaryFolder;
using torch::Tensor;

/// The built-in model as an external one, and what was asked of its mode.
struct Wrapped {
  explicit Wrapped(model::DMamba built_in) : inner(std::move(built_in)) {
    options.name = "Wrapped";
    options.state_dim = inner->state_dim();
    options.act_dim = inner->act_dim();
    options.config = inner->config();
    options.parts = {{"inner", Tensor(), inner.ptr()}};
    options.forward = [this](const Tensor& states, const Tensor& actions,
                             const Tensor& returns_to_go, const Tensor& timesteps,
                             const Tensor& mask) {
      ++calls;
      return inner->forward(states, actions, returns_to_go, timesteps, mask);
    };
    options.buffers = [this] { return model::NamedTensors{{"count", count}}; };
    options.is_training = [this] { return inner->is_training(); };
    options.set_training = [this](bool on) { inner->train(on); };
  }
  Wrapped(const Wrapped&) = delete;
  Wrapped& operator=(const Wrapped&) = delete;

  model::ExternalModel make() { return model::ExternalModel(options); }

  model::DMamba inner;
  model::ExternalOptions options;
  Tensor count = torch::tensor(3, torch::kLong);
  int calls = 0;
};

TEST(ExternalModel, TrainsToTheBitsOfTheSameModelBuiltIn) {
  const config::Config config = small_run();  // with dropout
  model::DMamba plain = make_model(config);
  const auto rows = Trainer(config, make_store(), plain).run(1e9);
  Wrapped wrapped(make_model(config));
  const auto own = Trainer(config, make_store(), wrapped.make()).run(1e9);
  ASSERT_EQ(own.size(), rows.size());
  EXPECT_EQ(own.back().loss, rows.back().loss);
  EXPECT_EQ(own.back().gradient_norm, rows.back().gradient_norm);
  EXPECT_TRUE(same_parameters(*plain, *wrapped.inner));
  EXPECT_EQ(wrapped.calls, 13);
}

TEST(ExternalModel, NamesMakeATree) {
  Wrapped wrapped(make_model(small_run()));
  wrapped.options.parts.push_back({"head.layers.0.weight", torch::ones({2, 2}), nullptr});
  wrapped.options.parts.push_back({"head.scale", torch::ones({1}).requires_grad_(), nullptr});
  const auto parameters = wrapped.make()->named_parameters();
  EXPECT_TRUE(parameters["inner.embed_state.weight"].is_same(
      wrapped.inner->named_parameters()["embed_state.weight"]));
  EXPECT_FALSE(parameters["head.layers.0.weight"].requires_grad());
  EXPECT_TRUE(parameters["head.scale"].requires_grad());
  wrapped.options.parts.push_back({"sets.a", torch::ones({1}), nullptr});
  expect_contains(message_of<ConfigError>([&] { wrapped.make(); }), {"'sets.a'"});
  wrapped.options.parts.clear();
  expect_contains(message_of<ConfigError>([&] { wrapped.make(); }), {"Wrapped: has no parameters"});
}

TEST(ExternalModel, ItsForwardDrawsFromSeededGeneratorsThatComeBack) {
  const config::Config config = small_run();
  const auto losses = [&](uint64_t callers_seed) {
    Wrapped wrapped(make_model(config));
    const auto plain = wrapped.options.forward;
    wrapped.options.forward = [plain](const auto&... inputs) {
      const Tensor predicted = plain(inputs...);
      return predicted + 0.1 * torch::randn_like(predicted);
    };
    Trainer trainer(config, make_store(), wrapped.make());
    torch::manual_seed(callers_seed);
    const Tensor expected = torch::rand({2});
    torch::manual_seed(callers_seed);
    std::vector<double> found;
    while (!trainer.finished()) {
      for (const MetricsRow& row : trainer.run(1e9, 3)) found.push_back(row.loss);
    }
    EXPECT_TRUE(torch::equal(torch::rand({2}), expected));
    return found;
  };
  EXPECT_EQ(losses(1), losses(2));
}

TEST(ExternalModel, ABrokenStepIsNotMade) {
  const config::Config config = small_run();
  Wrapped whole(make_model(config)), broken(make_model(config));
  Trainer(config, make_store(), whole.make()).run(1e9);
  const auto plain = broken.options.forward;
  broken.options.forward = [&broken, plain](const auto&... inputs) {
    const Tensor predicted = plain(inputs...);
    if (broken.calls == 4) throw std::out_of_range("by design");
    return predicted;
  };
  Trainer trainer(config, make_store(), broken.make());
  EXPECT_THROW(trainer.run(1e9), std::out_of_range);
  EXPECT_EQ(trainer.step(), 3);
  trainer.run(1e9);
  EXPECT_TRUE(same_parameters(*whole.inner, *broken.inner));
}

TEST(ExternalModel, CheckpointsHoldItsBuffersAndItsName) {
  const config::Config config = small_run();
  Wrapped wrapped(make_model(config));
  Trainer trainer(config, make_store(), wrapped.make());
  trainer.run(1e9, 5);
  const TemporaryFolder folder;
  trainer.save(folder / "ckpt");
  EXPECT_EQ(read_training_state(folder / "ckpt").external_model, "Wrapped");
  Wrapped other(make_model(config, 2));
  other.count = torch::tensor(0, torch::kLong);
  Trainer resumed(config, make_store(), other.make());
  resumed.load(folder / "ckpt");
  EXPECT_EQ(other.count.item<int64_t>(), 3);
  EXPECT_TRUE(same_parameters(*other.inner, *wrapped.inner));
  other.count = torch::tensor(0, torch::kInt);
  expect_contains(message_of<CheckpointError>([&] { resumed.load(folder / "ckpt"); }),
                  {"tensor 'count' is I64"});

  Trainer built_in(config, make_store(), make_model(config));
  expect_contains(message_of<CheckpointError>([&] { built_in.load(folder / "ckpt"); }),
                  {"with a model of its user's, Wrapped"});
  expect_contains(message_of<CheckpointError>([&] { load_policy(folder / "ckpt", {}); }),
                  {"Wrapped; evaluate it from Python"});
  built_in.save(folder / "plain");
  expect_contains(message_of<CheckpointError>([&] { resumed.load(folder / "plain"); }),
                  {"by a run of the built-in model"});
}

TEST(ExternalModel, ItsPolicyIsTheWindowedOneOfTheBuiltInModel) {
  const config::Config config = small_run();
  Wrapped wrapped(make_model(config));
  model::PolicyOptions options;
  options.state_mean = {0.1f, 0.2f, 0.3f};
  options.state_std = {1.0f, 2.0f, 3.0f};
  model::Policy own(wrapped.make(), options), plain(wrapped.inner, options);
  for (model::Policy* policy : {&own, &plain}) {
    policy->reset(torch::ones({1}, torch::kBool), torch::full({1}, 5.0, torch::kDouble));
  }
  for (int step = 0; step < 8; ++step) {
    const Tensor state = torch::full({1, 3}, 0.1 * step);
    EXPECT_TRUE(torch::equal(own.act(state), plain.act(state))) << "step " << step;
    own.observe(torch::ones({1}));
    plain.observe(torch::ones({1}));
  }
  EXPECT_TRUE(wrapped.inner->is_training());
  options.kind = "recurrent";
  expect_contains(message_of<ConfigError>([&] { model::Policy(wrapped.make(), options); }),
                  {"kind windowed and weights fp32, got recurrent"});
}

TEST(ExternalModel, EmbeddingsAreNotDecayed) {
  const config::Config config = small_run();
  Wrapped wrapped(make_model(config));
  wrapped.options.parts.push_back({"place", torch::ones({4, 4}).requires_grad_(), nullptr});
  wrapped.options.parts.push_back({"weight", torch::ones({4, 4}).requires_grad_(), nullptr});
  wrapped.options.embeddings = {"place"};
  const AdamW optimizer(*wrapped.make(), config.training);
  for (const Slot& slot : optimizer.slots()) {
    if (slot.name == "place" || slot.name == "inner.embed_timestep.weight") {
      EXPECT_FALSE(slot.is_matrix) << slot.name;
    }
    if (slot.name == "weight" || slot.name == "inner.embed_state.weight") {
      EXPECT_TRUE(slot.is_matrix) << slot.name;
    }
  }
}

}  // namespace
}  // namespace dmamba::train
