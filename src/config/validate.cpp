// The values that each field may take.
#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "config/format.h"
#include "dmamba/common/error.h"
#include "dmamba/config/config.h"

namespace dmamba::config {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

// Far beyond any use; they keep products of sizes from overflowing.
constexpr std::int64_t kMaxWidth = 65536;
constexpr std::int64_t kMaxLayers = 1000;
constexpr std::int64_t kMaxSteps = 10'000'000;
constexpr std::int64_t kMaxBatch = 1 << 20;
constexpr std::int64_t kMaxThreads = 1024;
constexpr std::size_t kMaxNameBytes = 200;

[[noreturn]] void reject(const std::string& key, const std::string& value,
                         const std::string& allowed) {
  throw ConfigError("key '" + key + "': " + value + " is not allowed; must be " + allowed);
}

void check_range(const std::string& key, std::int64_t value, std::int64_t low,
                 std::int64_t high = kNoLimit) {
  if (value >= low && value <= high) return;
  const std::string from = format_number(low);
  reject(key, format_number(value),
         high == kNoLimit ? "at least " + from : "from " + from + " to " + format_number(high));
}

/// `allowed` completes "must be ...".
void check(const std::string& key, double value, bool ok, const std::string& allowed) {
  if (!ok) reject(key, format_number(value), allowed);
}

void check_fraction(const std::string& key, double value) {
  check(key, value, value >= 0.0 && value < 1.0, "at least 0 and less than 1");
}

void check_not_negative(const std::string& key, double value) {
  check(key, value, value >= 0.0 && value < kInfinity, "a finite number, at least 0");
}

void check_positive(const std::string& key, double value) {
  check(key, value, value > 0.0 && value < kInfinity, "a finite number greater than 0");
}

void check_choice(const std::string& key, const std::string& value,
                  std::initializer_list<std::string_view> choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  std::string allowed;
  for (const std::string_view choice : choices) {
    allowed += (allowed.empty() ? "one of " : ", ") + std::string(choice);
  }
  reject(key, "'" + value + "'", allowed);
}

void check_printable(const std::string& key, const std::string& value) {
  const bool control = std::any_of(value.begin(), value.end(),
                                   [](unsigned char c) { return c < 0x20 || c == 0x7f; });
  if (control) reject(key, "'" + value + "'", "free of control characters");
}

void validate_name(const std::string& name) {
  check_printable("name", name);
  if (name.empty() || name.size() > kMaxNameBytes || name.front() == '.' ||
      name.find('/') != std::string::npos) {
    reject("name", "'" + name + "'",
           "a folder's name: 1 to " + std::to_string(kMaxNameBytes) +
               " bytes, no '/', no '.' in front");
  }
}

void validate_dataset(const DatasetConfig& dataset) {
  check_printable("dataset.path", dataset.path);
  check_printable("dataset.environment", dataset.environment);
  check_not_negative("dataset.rtg_scale", dataset.rtg_scale);
  check_range("dataset.max_episode_length", dataset.max_episode_length, 0, kMaxSteps);
  check("dataset.fraction", dataset.fraction, dataset.fraction > 0.0 && dataset.fraction <= 1.0,
        "greater than 0 and at most 1");
  check_range("dataset.buffers", dataset.buffers, 0);
  check_range("dataset.trajectories_per_buffer", dataset.trajectories_per_buffer, 0);
  check_range("dataset.transitions", dataset.transitions, 0);
  check_choice("dataset.cache", dataset.cache, {"disk", "memory"});
  check("dataset.top_fraction", dataset.top_fraction,
        dataset.top_fraction > 0.0 && dataset.top_fraction <= 1.0, "greater than 0 and at most 1");
  check_choice("dataset.rewards", dataset.rewards, {"dense", "delayed"});
  check("dataset.validation_fraction", dataset.validation_fraction,
        dataset.validation_fraction > 0.0 && dataset.validation_fraction < 1.0,
        "greater than 0 and less than 1");
}

void validate_model(const ModelConfig& model) {
  check_range("model.d_model", model.d_model, 1, kMaxWidth);
  check_range("model.n_layer", model.n_layer, 1, kMaxLayers);
  check_range("model.context_length", model.context_length, 1, kMaxSteps);
  const auto mixers = static_cast<std::int64_t>(model.token_mixer.size());
  if (mixers != 1 && mixers != model.n_layer) {
    reject("model.token_mixer", "a list of " + format_number(mixers),
           "one name, or one per layer (model.n_layer = " + format_number(model.n_layer) + ")");
  }
  if (std::find(model.token_mixer.begin(), model.token_mixer.end(), "") !=
      model.token_mixer.end()) {
    reject("model.token_mixer", "''", "the name of a token mixer, such as mamba");
  }
  check_choice("model.channel_mixing", model.channel_mixing, {"mlp", "ssm", "none"});
  check_choice("model.padding", model.padding, {"masked", "paper"});
  check_choice("model.initialization", model.initialization, {"mamba", "paper"});
  check_fraction("model.dropout", model.dropout);
  check_fraction("model.embedding_dropout", model.embedding_dropout);
  check_range("model.d_state", model.d_state, 1, kMaxWidth);
  check_range("model.d_conv", model.d_conv, 1, kMaxWidth);
  check_range("model.expand", model.expand, 1, kMaxWidth);
  check_range("model.dt_rank", model.dt_rank, 0, kMaxWidth);
  check_range("model.max_timestep", model.max_timestep, 1, kMaxSteps);
  check_range("model.n_head", model.n_head, 1, kMaxWidth);
  check_range("model.conv_window", model.conv_window, 1, kMaxWidth);
  check_range("model.channel_group", model.channel_group, 1, kMaxWidth);
  check_choice("model.rtg", model.rtg, {"token", "none"});
  check_choice("model.past_actions", model.past_actions, {"token", "none"});
  check_choice("model.encoder", model.encoder, {"nature", "impala"});
  check_choice("model.position", model.position, {"segment", "timestep"});
}

void validate_training(const TrainingConfig& training) {
  check_range("training.steps", training.steps, 1);
  check_range("training.batch_size", training.batch_size, 1, kMaxBatch);
  check_positive("training.learning_rate", training.learning_rate);
  check_not_negative("training.weight_decay", training.weight_decay);
  check_choice("training.decay", training.decay, {"matrices", "all"});
  check_fraction("training.beta1", training.beta1);
  check_fraction("training.beta2", training.beta2);
  check_positive("training.epsilon", training.epsilon);
  check_range("training.warmup_steps", training.warmup_steps, 0);
  check_range("training.warmup_tokens", training.warmup_tokens, 0);
  check_range("training.cosine_tokens", training.cosine_tokens, 0);
  check_choice("training.schedule", training.schedule, {"constant", "cosine", "cosine-floor"});
  const double final_rate = training.final_learning_rate;
  check("training.final_learning_rate", final_rate, final_rate >= 0.0 && final_rate <= 1.0,
        "from 0 to 1, a fraction of training.learning_rate");
  check_not_negative("training.gradient_clip", training.gradient_clip);
  check_range("training.log_every", training.log_every, 1);
  check_range("training.checkpoint_every", training.checkpoint_every, 1);
  check_range("training.keep_checkpoints", training.keep_checkpoints, 1);
  check_range("training.skip_nan_batches", training.skip_nan_batches, 0);
  check_range("training.threads", training.threads, 0, kMaxThreads);
  check_choice("training.device", training.device, {"auto", "cpu", "cuda"});
  check_choice("training.precision", training.precision, {"fp32", "bf16", "tf32"});
  check_choice("training.graph", training.graph, {"auto", "on", "off"});
  check_choice("training.data", training.data, {"auto", "device", "host"});
  check_choice("training.context", training.context, {"fixed", "random", "schedule", "bandit"});
  check_range("training.context_every", training.context_every, 1);
  check("training.context_tolerance", training.context_tolerance,
        training.context_tolerance >= 0.0 && training.context_tolerance < 1.0,
        "at least 0 and less than 1");
}

void validate_context_rule(const TrainingConfig& training) {
  if (training.context == "schedule") {
    check_choice("training.context_rule", training.context_rule, {"auto", "grow", "shrink"});
  } else if (training.context == "bandit") {
    check_choice("training.context_rule", training.context_rule, {"auto", "ucb", "halving"});
  } else if (training.context_rule != "auto") {
    reject(
        "training.context_rule", "'" + training.context_rule + "'",
        "auto with training.context=" + training.context + "; only schedule and bandit have one");
  }
}

void validate_contexts(const Config& config) {
  const TrainingConfig& training = config.training;
  validate_context_rule(training);
  if (training.context == "fixed") {
    if (training.contexts.empty()) return;
    reject("training.contexts", "a list with training.context=fixed",
           "empty; or choose training.context=random, schedule or bandit");
  }
  if (training.contexts.size() < 2) {
    reject("training.contexts",
           "a list of " + format_number(static_cast<std::int64_t>(training.contexts.size())),
           "two lengths or more with training.context=" + training.context);
  }
  std::int64_t before = 0;
  for (const std::int64_t length : training.contexts) {
    check_range("training.contexts", length, before + 1, kMaxSteps);
    before = length;
  }
  if (before != config.model.context_length) {
    reject("training.contexts", "a list that ends with " + format_number(before),
           "rising to model.context_length, " + format_number(config.model.context_length));
  }
  if (!config.pretraining.sets.empty()) {
    reject("training.context", "'" + training.context + "'", "fixed with pretraining.sets");
  }
}

void check_patterns(const std::string& key, const std::vector<std::string>& patterns) {
  for (const std::string& pattern : patterns) {
    check_printable(key, pattern);
    if (pattern.empty()) reject(key, "''", "patterns of parameters' names, such as transformer.*");
  }
}

void validate_transfer(const TransferConfig& transfer) {
  check_printable("transfer.init_from", transfer.init_from);
  check_printable("transfer.set", transfer.set);
  check_patterns("transfer.fresh", transfer.fresh);
  check_patterns("transfer.freeze", transfer.freeze);
  for (const std::string& entry : transfer.learning_rates) parse_rate_factor(entry);
  check_choice("transfer.statistics", transfer.statistics, {"data", "checkpoint"});
  if (!transfer.init_from.empty()) return;
  const auto needs_init = [](const std::string& key, const std::string& value) {
    throw ConfigError("key '" + key + "': " + value +
                      " says what is taken from a checkpoint, but transfer.init_from is empty");
  };
  if (!transfer.set.empty()) needs_init("transfer.set", "'" + transfer.set + "'");
  if (transfer.statistics != "data") needs_init("transfer.statistics", transfer.statistics);
}

void check_one_per_set(const std::string& key, std::size_t count, std::size_t sets) {
  if (count == 0 || count == sets) return;
  reject(key, "a list of " + format_number(static_cast<std::int64_t>(count)),
         "empty, or one per set (pretraining.sets has " +
             format_number(static_cast<std::int64_t>(sets)) + ")");
}

void validate_pretraining(const PretrainingConfig& pretraining) {
  const std::size_t sets = pretraining.sets.size();
  for (const std::string& set : pretraining.sets) {
    check_printable("pretraining.sets", set);
    if (set.empty()) reject("pretraining.sets", "''", "files, or names of known datasets");
  }
  if (sets == 1) {
    reject("pretraining.sets", "a list of 1", "empty, or of several sets; dataset.path is for one");
  }
  check_positive("pretraining.temperature", pretraining.temperature);
  check_one_per_set("pretraining.environments", pretraining.environments.size(), sets);
  for (const std::string& id : pretraining.environments) {
    check_printable("pretraining.environments", id);
  }
  check_one_per_set("pretraining.rtg_scales", pretraining.rtg_scales.size(), sets);
  for (const double scale : pretraining.rtg_scales) {
    check_positive("pretraining.rtg_scales", scale);
  }
}

/// One place names the data: a run of several sets takes nothing of `dataset` but how its episodes
/// are chosen.
void check_single_source(const Config& config) {
  if (config.pretraining.sets.empty()) return;
  const auto refuse = [](const std::string& key, bool given) {
    if (!given) return;
    throw ConfigError("key '" + key +
                      "': is for a run on one set, but pretraining.sets is given; leave one out");
  };
  refuse("dataset.path", !config.dataset.path.empty());
  refuse("dataset.environment", !config.dataset.environment.empty());
  refuse("dataset.rtg_scale", config.dataset.rtg_scale != 0.0);
  refuse("dataset.max_episode_length", config.dataset.max_episode_length != 0);
  refuse("evaluation.targets", !config.evaluation.targets.empty());
}

void validate_evaluation(const EvaluationConfig& evaluation) {
  std::vector<double> seen;
  for (const double target : evaluation.targets) {
    check("evaluation.targets", target, target > -kInfinity && target < kInfinity,
          "a finite number");
    check("evaluation.targets", target, std::find(seen.begin(), seen.end(), target) == seen.end(),
          "given once: the results are named by their target");
    seen.push_back(target);
  }
  check_range("evaluation.episodes", evaluation.episodes, 1);
  check_range("evaluation.every", evaluation.every, 0);
  check_choice("evaluation.policy", evaluation.policy, {"windowed", "recurrent"});
  const double confidence = evaluation.confidence;
  check("evaluation.confidence", confidence, confidence > 0.0 && confidence < 1.0,
        "greater than 0 and less than 1");
  check_choice("evaluation.engine", evaluation.engine, {"workers", "envpool"});
  check_not_negative("evaluation.timeout", evaluation.timeout);
  check("evaluation.max_failed", evaluation.max_failed,
        evaluation.max_failed >= 0.0 && evaluation.max_failed <= 1.0,
        "from 0 to 1, a share of the episodes");
  check_not_negative("evaluation.temperature", evaluation.temperature);
  check_choice("evaluation.rtg_rewards", evaluation.rtg_rewards, {"raw", "clipped", "none"});
  check_fraction("evaluation.sticky_actions", evaluation.sticky_actions);
}

}  // namespace

RateFactor parse_rate_factor(const std::string& entry) {
  const std::size_t equals = entry.rfind('=');
  RateFactor rate{entry.substr(0, equals), 0.0};
  if (equals != std::string::npos) {
    const char* end = entry.data() + entry.size();
    const auto [stop, code] = std::from_chars(entry.data() + equals + 1, end, rate.factor);
    if (code != std::errc() || stop != end) rate.factor = 0.0;
  }
  if (rate.pattern.empty() || !(rate.factor > 0.0 && rate.factor < kInfinity)) {
    reject("transfer.learning_rates", "'" + entry + "'",
           "pattern=factor with a positive number, such as transformer.*=0.1; to keep parameters "
           "as they are, use transfer.freeze");
  }
  check_printable("transfer.learning_rates", rate.pattern);
  return rate;
}

void validate(const Config& config) {
  validate_name(config.name);
  validate_dataset(config.dataset);
  validate_model(config.model);
  validate_training(config.training);
  validate_transfer(config.transfer);
  validate_pretraining(config.pretraining);
  check_single_source(config);
  validate_evaluation(config.evaluation);
  validate_contexts(config);
  const TrainingConfig& training = config.training;
  if (training.cosine_tokens > 0) {
    const double a_step =
        static_cast<double>(training.batch_size) * static_cast<double>(config.model.context_length);
    const double warmup = training.warmup_tokens > 0
                              ? static_cast<double>(training.warmup_tokens)
                              : a_step * static_cast<double>(training.warmup_steps);
    check("training.cosine_tokens", static_cast<double>(training.cosine_tokens),
          static_cast<double>(training.cosine_tokens) > warmup,
          "more than the warm-up's " + format_number(warmup) +
              " tokens (training.warmup_tokens, or warmup_steps batches of batch_size * K)");
  }
  if (config.dataset.max_episode_length > config.model.max_timestep) {
    reject(
        "model.max_timestep", format_number(config.model.max_timestep),
        "at least dataset.max_episode_length, " + format_number(config.dataset.max_episode_length));
  }
}

}  // namespace dmamba::config
