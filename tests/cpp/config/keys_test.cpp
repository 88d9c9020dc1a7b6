// Names of keys: suggestions and bare names.
#include "config/keys.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "dmamba/common/error.h"

namespace dmamba::config {
namespace {

const std::vector<std::string> kKeys{"seed",     "dog.size",     "dog.colour",
                                     "cat.size", "cat.whiskers", "cat.seed"};

std::string resolve_error(const std::string& name) {
  try {
    return "resolved to " + resolve_key(name, kKeys);
  } catch (const ConfigError& error) {
    return error.what();
  }
}

TEST(Keys, AllKeysAreDottedAndUnique) {
  std::vector<std::string> keys = all_keys();
  EXPECT_EQ(keys.front(), "name");
  for (const char* key :
       {"seed", "dataset.path", "model.d_model", "training.steps", "evaluation.seed"}) {
    EXPECT_NE(std::find(keys.begin(), keys.end(), key), keys.end()) << key;
  }
  std::sort(keys.begin(), keys.end());
  EXPECT_EQ(std::adjacent_find(keys.begin(), keys.end()), keys.end());
}

TEST(Keys, BareNamesStandForTheOnlyKeyThatEndsSo) {
  EXPECT_EQ(resolve_key("colour", kKeys), "dog.colour");
  EXPECT_EQ(resolve_key("dog.size", kKeys), "dog.size");
  EXPECT_EQ(resolve_key("seed", kKeys), "seed") << "a whole key goes before the end of another";
  EXPECT_EQ(resolve_key("context_length", all_keys()), "model.context_length");
}

TEST(Keys, AmbiguousAndUnknownNames) {
  EXPECT_EQ(resolve_error("size"), "key 'size': ambiguous; use one of dog.size, cat.size");
  EXPECT_EQ(resolve_error("cat"),
            "key 'cat': is a section; set its keys: cat.size, cat.whiskers, "
            "cat.seed");
  EXPECT_EQ(resolve_error("wiskers"), "key 'wiskers': unknown; did you mean 'cat.whiskers'?");
  EXPECT_EQ(resolve_error("elephant"), "key 'elephant': unknown; allowed: seed, dog, cat");
}

TEST(Keys, SuggestsTheNearest) {
  const auto explain = [](const char* key) { return explain_unknown(key, all_keys()); };
  EXPECT_EQ(explain("training.stepz"), "unknown; did you mean 'training.steps'?");
  EXPECT_EQ(explain("trainning"), "unknown; did you mean 'training'?");
  EXPECT_EQ(explain("steps"), "unknown; did you mean 'training.steps'?");
  EXPECT_EQ(explain("training.d_model"), "unknown; did you mean 'model.d_model'?");
  EXPECT_EQ(explain("model.pading"), "unknown; did you mean 'model.padding'?");
  EXPECT_EQ(explain("model.x"),
            "unknown; allowed: model.d_model, model.n_layer, model.context_length, "
            "model.token_mixer, model.channel_mixing, model.padding, model.initialization, "
            "model.dropout, model.embedding_dropout, model.d_state, model.d_conv, model.expand, "
            "model.dt_rank, model.max_timestep, model.n_head, model.conv_window, "
            "model.channel_group, model.rtg, model.past_actions, model.encoder, model.position");
  EXPECT_EQ(explain("optimizer"),
            "unknown; allowed: name, seed, dataset, model, training, transfer, "
            "pretraining, evaluation");
}

}  // namespace
}  // namespace dmamba::config
