// The one table of the configuration's fields: name, member, meaning. Reading, writing, overrides,
// documentation and the Python binding all walk it, so a new field is a member in config.h, a row
// here and a range in src/config/validate.cpp.
//
//   for_each_field([](const char* name, auto member, const char* doc) { ... }, Tag<ModelConfig>{});
#pragma once

#include <concepts>

#include "dmamba/config/config.h"

namespace dmamba::config {

/// Names a struct without making one.
template <class Struct>
struct Tag {};

/// True for the structs that are sections of a Config, false for plain values.
template <class T>
inline constexpr bool kIsSection =
    std::same_as<T, DatasetConfig> || std::same_as<T, ModelConfig> ||
    std::same_as<T, TrainingConfig> || std::same_as<T, TransferConfig> ||
    std::same_as<T, PretrainingConfig> || std::same_as<T, EvaluationConfig>;

/// Calls f(name, pointer to member, doc) for each field, in the order in which they are written.
template <class F>
void for_each_field(F&& f, Tag<DatasetConfig>) {
  using S = DatasetConfig;
  f("path", &S::path, "dataset file, or the name of a known dataset");
  f("environment", &S::environment, "gymnasium id to evaluate in; '': from the file's metadata");
  f("rtg_scale", &S::rtg_scale, "returns-to-go are divided by this; 0: from the data");
  f("max_episode_length", &S::max_episode_length,
    "environment steps after which an evaluation episode ends; 0: from the data");
  f("fraction", &S::fraction, "share of the episodes, drawn with selection_seed; 1: all");
  f("buffers", &S::buffers, "DQN-replay: the last so many shards are read; 0: all");
  f("trajectories_per_buffer", &S::trajectories_per_buffer,
    "DQN-replay: episodes a visit of a shard; 0: all of it");
  f("transitions", &S::transitions,
    "DQN-replay: visits end once so many transitions are chosen; 0: no limit");
  f("selection_seed", &S::selection_seed,
    "seed of the episodes of fraction; DQN-replay: of the order of visits");
  f("cache", &S::cache,
    "disk: DQN-replay: chosen frames are kept in a file, mapped by later starts; vectors: rows are "
    "read as they are drawn where all would take over half of the free memory | memory: all is in "
    "memory");
  f("top_fraction", &S::top_fraction,
    "share of the episodes that is trained on, those with the highest returns; 1: all");
  f("rewards", &S::rewards,
    "dense: as recorded | delayed: an episode's whole return comes with its last step");
  f("validation_fraction", &S::validation_fraction,
    "of the episodes, drawn with selection_seed, kept from training for context=schedule alone");
}

template <class F>
void for_each_field(F&& f, Tag<ModelConfig>) {
  using S = ModelConfig;
  f("d_model", &S::d_model, "channels of a token");
  f("n_layer", &S::n_layer, "blocks of token mixing and channel mixing");
  f("context_length", &S::context_length, "K, environment steps the model sees; 3 K tokens");
  f("token_mixer", &S::token_mixer, "one name for all layers, or a list with one per layer");
  f("channel_mixing", &S::channel_mixing,
    "mlp: as in the authors' code | ssm: a selective state space along the channels | none");
  f("padding", &S::padding,
    "masked: padded tokens touch neither convolution nor state | paper: they do, as in the paper");
  f("initialization", &S::initialization,
    "mamba: mamba_ssm's | paper: as the authors' code initialises");
  f("dropout", &S::dropout, "probability after the channel mixer");
  f("embedding_dropout", &S::embedding_dropout, "probability after the embeddings");
  f("d_state", &S::d_state, "state size of a channel");
  f("d_conv", &S::d_conv, "taps of the causal convolution");
  f("expand", &S::expand, "inner channels per channel of a token");
  f("dt_rank", &S::dt_rank, "rank of the step-size projection; 0: ceil(d_model / 16)");
  f("max_timestep", &S::max_timestep, "rows of the timestep embedding");
  f("n_head", &S::n_head, "attention: heads; they divide d_model");
  f("conv_window", &S::conv_window, "convolution: tokens that a filter sees");
  f("channel_group", &S::channel_group,
    "channel_mixing ssm: channels that make up a step along the channels; they divide d_model");
  f("rtg", &S::rtg, "token: conditioned on returns-to-go | none: behaviour cloning");
  f("past_actions", &S::past_actions, "token: the model sees its past actions | none");
  f("encoder", &S::encoder,
    "of frames: nature: three convolutions, as in the paper | impala: a small residual network");
  f("position", &S::position,
    "with frames: segment: the first step's time and a learned place in the segment, as in the "
    "paper | timestep: each step's own time, without an end for recurrent policies");
}

template <class F>
void for_each_field(F&& f, Tag<TrainingConfig>) {
  using S = TrainingConfig;
  f("steps", &S::steps, "optimizer steps in all");
  f("batch_size", &S::batch_size, "segments per step");
  f("learning_rate", &S::learning_rate, "AdamW's rate after the warm-up");
  f("weight_decay", &S::weight_decay, "AdamW's decoupled decay");
  f("decay", &S::decay,
    "matrices: A_log, D, norms, biases and embeddings undecayed | all: every parameter decays");
  f("beta1", &S::beta1, "AdamW's first moment");
  f("beta2", &S::beta2, "AdamW's second moment");
  f("epsilon", &S::epsilon, "AdamW's denominator offset");
  f("warmup_steps", &S::warmup_steps, "steps of linear warm-up; 0: none");
  f("warmup_tokens", &S::warmup_tokens,
    "warm-up in tokens, batch_size * K a step, in place of warmup_steps; 0: in steps");
  f("schedule", &S::schedule,
    "after the warm-up: constant | cosine: falls to final_learning_rate | cosine-floor: falls "
    "towards 0, never below final_learning_rate");
  f("cosine_tokens", &S::cosine_tokens, "tokens at which the cosine ends; 0: those of all steps");
  f("final_learning_rate", &S::final_learning_rate,
    "fraction of learning_rate at the end of the cosine");
  f("gradient_clip", &S::gradient_clip, "largest global gradient norm; 0: off");
  f("log_every", &S::log_every, "steps between rows of metrics.csv");
  f("checkpoint_every", &S::checkpoint_every, "steps between checkpoints");
  f("keep_checkpoints", &S::keep_checkpoints, "newest checkpoints that are kept");
  f("skip_nan_batches", &S::skip_nan_batches,
    "batches in a row whose loss or gradient is not finite that are passed over; one more stops "
    "the run; 0: the first one does");
  f("threads", &S::threads, "CPU threads; 0: torch's own choice");
  f("device", &S::device, "auto: a GPU where there is one to use, else the CPU | cpu | cuda");
  f("precision", &S::precision,
    "of a step's arithmetic: fp32 | bf16: autocast, parameters stay fp32 | tf32: on a GPU, "
    "products of fp32 with rounded factors");
  f("graph", &S::graph,
    "a step as one CUDA graph: auto: on a GPU, op by op where it cannot be | on: fails then | off");
  f("data", &S::data,
    "of a run on a GPU: auto: in its memory where they take at most a quarter of what is free | "
    "device | host: batches are drawn on the CPU and copied");
  f("context", &S::context,
    "K of a step: fixed: model.context_length | random: drawn from contexts, so that one model "
    "serves them all | schedule: by a rule on the loss of held-out episodes | bandit: by returns "
    "in the environment");
  f("contexts", &S::contexts, "the lengths to choose from, rising to model.context_length");
  f("context_rule", &S::context_rule,
    "of schedule: grow (auto) | shrink: to the next length once the loss stops falling; of bandit: "
    "ucb (auto): a length at a time | halving: drawn among those that the returns have spared");
  f("context_every", &S::context_every, "schedule, bandit: steps between two decisions");
  f("context_tolerance", &S::context_tolerance,
    "schedule: the loss has stopped falling where it fell by less than this fraction");
}

template <class F>
void for_each_field(F&& f, Tag<TransferConfig>) {
  using S = TransferConfig;
  f("init_from", &S::init_from,
    "checkpoint folder, run folder or safetensors file where parameters begin; '': from the seed");
  f("set", &S::set,
    "of a checkpoint of several sets: whose embeddings and head are taken; '': the trunk alone");
  f("fresh", &S::fresh,
    "what begins anew: auto: embeddings and heads of other states, actions or games | patterns of "
    "parameters' names");
  f("freeze", &S::freeze, "patterns of parameters' names that keep their values");
  f("learning_rates", &S::learning_rates,
    "pattern=factor: of training.learning_rate, for the parameters that match; the last counts");
  f("statistics", &S::statistics,
    "mean and deviation that states are standardised with: data: this run's | checkpoint: its own");
}

template <class F>
void for_each_field(F&& f, Tag<PretrainingConfig>) {
  using S = PretrainingConfig;
  f("sets", &S::sets,
    "several datasets at once, each with its own embeddings and head; []: dataset.path alone");
  f("temperature", &S::temperature,
    "a step's set is drawn in proportion to its transitions^(1 / temperature)");
  f("environments", &S::environments, "gymnasium ids, one a set; []: from the files");
  f("rtg_scales", &S::rtg_scales, "returns-to-go are divided by these; []: from the data");
}

template <class F>
void for_each_field(F&& f, Tag<EvaluationConfig>) {
  using S = EvaluationConfig;
  f("targets", &S::targets,
    "target returns (raw); []: from the data, its 90th percentile and its maximum");
  f("episodes", &S::episodes, "episodes per target");
  f("every", &S::every, "training steps between evaluations; 0: only after training");
  f("policy", &S::policy,
    "windowed: re-reads the last K steps | recurrent: carries the state, O(1) a step");
  f("rtg_rewards", &S::rtg_rewards,
    "returns-to-go go down by raw rewards | none: they stay, as with delayed rewards | clipped: "
    "of games, by the data's");
  f("confidence", &S::confidence, "level of the bootstrap intervals");
  f("seed", &S::seed, "seed of the environments");
  f("engine", &S::engine,
    "workers: an environment an episode, the same episodes everywhere | envpool: of MuJoCo, other "
    "episodes than those of the same seeds elsewhere");
  f("timeout", &S::timeout,
    "seconds that one make, reset or step of an environment may take; 0: no limit");
  f("max_failed", &S::max_failed,
    "share of a target's episodes that may fail (their environment raises, hangs, returns NaN or "
    "dies) before the evaluation does");
  f("temperature", &S::temperature,
    "discrete actions: of the softmax that they are drawn from; 0: the likeliest");
  f("sticky_actions", &S::sticky_actions,
    "Atari: probability that a frame repeats the action before it");
}

template <class F>
void for_each_field(F&& f, Tag<Config>) {
  using S = Config;
  f("name", &S::name, "name of the run, and of its folder");
  f("seed", &S::seed, "seed of parameters, dropout and sampling");
  f("dataset", &S::dataset, "the data");
  f("model", &S::model, "the network");
  f("training", &S::training, "the optimisation");
  f("transfer", &S::transfer, "where parameters begin, and what of them is trained");
  f("pretraining", &S::pretraining, "several sets at once");
  f("evaluation", &S::evaluation, "scoring in the environment");
}

}  // namespace dmamba::config
