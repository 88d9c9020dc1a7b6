// The configuration of a run: one plain struct per area, whose initialisers are the defaults.
// fields.h tells the fields' names and meaning, yaml.h reads and writes them, validate() here says
// which values are allowed. Strings that name a choice list the choices; "from the data" means that
// the caller fills the value in once the dataset is read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dmamba::config {

/// Which dataset, and how its returns and episode lengths are scaled.
struct DatasetConfig {
  std::string path;                     // file, or the name of a known dataset
  std::string environment;              // gymnasium id; empty: from the file's metadata
  double rtg_scale = 0.0;               // raw return per model unit; 0: from the data
  std::int64_t max_episode_length = 0;  // environment steps; 0: from the data
  double fraction = 1.0;                // of the episodes, drawn with selection_seed
  // Of DQN-replay recordings alone; see data::ReplaySelection.
  std::int64_t buffers = 0;                  // the last so many shards; 0: all
  std::int64_t trajectories_per_buffer = 0;  // episodes a visit of a shard; 0: all of it
  std::int64_t transitions = 0;              // reading ends once so many are chosen; 0: no limit
  std::uint64_t selection_seed = 0;          // of the order of visits, and of `fraction`
  std::string cache = "disk";                // disk | memory: where the chosen frames are kept
  double top_fraction = 1.0;                 // of the episodes, those with the highest returns
  std::string rewards = "dense";             // dense | delayed: all of them with the last step
  double validation_fraction = 0.05;         // of the episodes, kept for context=schedule alone

  bool operator==(const DatasetConfig&) const = default;
};

/// The network. Sizes follow mamba_ssm's names.
struct ModelConfig {
  std::int64_t d_model = 128;
  std::int64_t n_layer = 3;
  std::int64_t context_length = 20;               // K environment steps, so L = 3 K tokens
  std::vector<std::string> token_mixer{"mamba"};  // one word for all layers, or one per layer
  std::string channel_mixing = "mlp";             // mlp | ssm | none
  std::string padding = "masked";                 // masked | paper
  std::string initialization = "mamba";           // mamba | paper
  double dropout = 0.1;                           // after the channel mixer
  double embedding_dropout = 0.1;                 // after the embeddings
  std::int64_t d_state = 16;
  std::int64_t d_conv = 4;
  std::int64_t expand = 2;           // d_inner = expand * d_model
  std::int64_t dt_rank = 0;          // 0: ceil(d_model / 16)
  std::int64_t max_timestep = 1000;  // rows of the timestep embedding
  // Of single mixers alone.
  std::int64_t n_head = 1;          // attention
  std::int64_t conv_window = 6;     // convolution: taps over tokens
  std::int64_t channel_group = 16;  // channel_mixing ssm: channels of a step along the channels
  // Which tokens there are beside the states'.
  std::string rtg = "token";           // token | none: behaviour cloning
  std::string past_actions = "token";  // token | none
  // Of models that see frames alone.
  std::string encoder = "nature";    // nature | impala
  std::string position = "segment";  // segment | timestep

  bool operator==(const ModelConfig&) const = default;
};

/// The optimisation: AdamW, a learning-rate schedule, and what is logged and kept.
struct TrainingConfig {
  std::int64_t steps = 100000;  // optimizer steps in all
  std::int64_t batch_size = 64;
  double learning_rate = 1e-3;  // after the warm-up
  double weight_decay = 1e-4;
  std::string decay = "matrices";  // matrices | all
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  std::int64_t warmup_steps = 1000;  // 0: none
  std::int64_t warmup_tokens = 0;    // in place of warmup_steps; a step has batch_size * K
  std::string schedule = "cosine";   // constant | cosine | cosine-floor
  std::int64_t cosine_tokens = 0;    // where the cosine ends; 0: with the last step
  double final_learning_rate = 0.1;  // fraction of learning_rate where the cosine ends
  double gradient_clip = 0.25;       // largest global gradient norm; 0: off
  std::int64_t log_every = 100;      // steps
  std::int64_t checkpoint_every = 5000;
  std::int64_t keep_checkpoints = 2;
  std::int64_t skip_nan_batches = 0;  // in a row, passed over; 0: the first one stops the run
  std::int64_t threads = 0;           // 0: torch's own choice
  std::string device = "auto";        // auto | cpu | cuda; auto: cuda where there is a GPU to use
  std::string precision = "fp32";     // fp32 | bf16 | tf32; parameters and their moments are fp32
  std::string graph = "auto";         // auto | on | off: a step as one CUDA graph
  std::string data = "auto";          // auto | device | host: where a GPU's batches are drawn from
  std::string context = "fixed";  // fixed | random | schedule | bandit: where a step's K is from
  std::vector<std::int64_t> contexts;  // to choose from, rising to model.context_length
  std::string context_rule = "auto";   // schedule: grow | shrink; bandit: ucb | halving
  std::int64_t context_every = 1000;   // steps between two decisions of schedule and bandit
  double context_tolerance = 0.01;     // schedule: the least relative fall that counts as one

  bool operator==(const TrainingConfig&) const = default;
};

/// Where parameters begin, and how far each may go. Patterns are those of file names (`*`, `?`,
/// `[...]`) over whole names of parameters; train::init_parameters() says what is taken.
struct TransferConfig {
  std::string init_from;  // checkpoint or run folder, or safetensors file; empty: from the seed
  std::string set;        // of a checkpoint of several sets: whose embeddings and head are taken
  std::vector<std::string> fresh{"auto"};   // auto | patterns: what begins anew
  std::vector<std::string> freeze;          // patterns: what is not trained
  std::vector<std::string> learning_rates;  // pattern=factor; the last that matches counts
  std::string statistics = "data";          // data | checkpoint: of the states

  bool operator==(const TransferConfig&) const = default;
};

/// An entry of TransferConfig::learning_rates.
struct RateFactor {
  std::string pattern;
  double factor;
};

/// Reads "pattern=factor". Throws ConfigError naming the key unless the factor is a positive
/// number.
RateFactor parse_rate_factor(const std::string& entry);

/// Several sets at once: a trunk that all share, embeddings and a head for each.
struct PretrainingConfig {
  std::vector<std::string> sets;  // files, or names of known datasets; empty: dataset.path alone
  double temperature = 1.0;       // a step's set is drawn in proportion to transitions^(1 / this)
  std::vector<std::string> environments;  // gymnasium ids, one a set; empty: from the files
  std::vector<double> rtg_scales;         // one a set; empty: from the data

  bool operator==(const PretrainingConfig&) const = default;
};

/// How the trained policy is scored in its environment.
struct EvaluationConfig {
  std::vector<double> targets;      // raw returns; empty: from the data (90th percentile, maximum)
  std::int64_t episodes = 20;       // per target
  std::int64_t every = 0;           // training steps; 0: only after training
  std::string policy = "windowed";  // windowed | recurrent
  std::string rtg_rewards = "raw";  // raw | clipped | none: what returns-to-go go down by
  double confidence = 0.95;         // of the bootstrap intervals
  std::uint64_t seed = 0;           // of the environments, apart from the training's
  std::string engine = "workers";   // workers | envpool: what steps vectors' environments
  double timeout = 60.0;            // seconds for one call of an environment; 0: no limit
  double max_failed = 0.1;          // share of a target's episodes that may fail
  // Of discrete actions alone.
  double temperature = 1.0;     // of the softmax that actions are drawn from; 0: the best
  double sticky_actions = 0.0;  // probability that a frame repeats the action before

  bool operator==(const EvaluationConfig&) const = default;
};

/// A whole run.
struct Config {
  std::string name = "run";
  std::uint64_t seed = 0;  // of parameters, dropout and sampling
  DatasetConfig dataset;
  ModelConfig model;
  TrainingConfig training;
  TransferConfig transfer;
  PretrainingConfig pretraining;
  EvaluationConfig evaluation;

  bool operator==(const Config&) const = default;
};

/// Throws ConfigError for the first value out of range; the message names key, value and what is
/// allowed. Names of token mixers are left to the mixers' table, the only place that knows them.
void validate(const Config& config);

}  // namespace dmamba::config
