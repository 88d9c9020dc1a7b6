// Fused steps of training that exist on CUDA alone. They take what src/nn and src/train hand them
// (checked there), work on the current stream, wait for nothing, and can be captured in a graph.
// In a library built without CUDA each of them throws dmamba::Error.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <tuple>
#include <vector>

#include "dmamba/common/learning_rate.h"
#include "kernels/game_embedding/params.h"
#include "kernels/normalization/params.h"
#include "kernels/policy_step/params.h"

namespace dmamba::ops::cuda_only {

using at::Tensor;

/// A dropout whose key, an int64 scalar, lies on the device; without a key there is none.
struct Dropout {
  double p = 0.0;
  Tensor key;
  int64_t first = 0;  // number of the first element in the mask, as in ops::dropout
};

/// x / (1 - p) or 0; the mask of ops::dropout with that key. Its own derivative.
Tensor dropout(const Tensor& x, const Dropout& dropout);

/// -exp(A_log), in one launch.
Tensor decay_rates(const Tensor& A_log);

/// Writes into `mirror` the parameter rounded, where it is bfloat16, else -exp(parameter); all in
/// one launch for every 128.
struct Mirrored {
  Tensor parameter, mirror;  // contiguous, of one size; float32
};
void write_mirrors(const std::vector<Mirrored>& list);

/// The sums of parts (blocks, ...) over the blocks, in one order.
Tensor sum_parts(const Tensor& parts);

// ---- Gradients of weights: kernels/weight_gradients/params.h ----

struct WeightGradient {
  Tensor dy, x;    // (rows, n), (rows, m); rows contiguous
  float* dweight;  // (n, m)
};

/// Whether weight_gradients() takes such factors: two of bfloat16, or of float32 where products may
/// be rounded to TF32; rows that lie on 16 bytes; on a device that has clusters of blocks.
bool weight_gradient_fits(const Tensor& dy, const Tensor& x);

/// Whether weight_gradients() fits and was measured to be faster than cuBLAS, whatever comes
/// beside: of weights up to 1024 x 256, on cards of compute capability 9.0.
bool weight_gradient_pays(const Tensor& dy, const Tensor& x);

/// dweight = dy^T x for each that fits, all of one type, in one launch for every 48.
void weight_gradients(const std::vector<WeightGradient>& gradients);

// ---- Products of activations and a weight: kernels/linear/params.h ----

/// Whether the functions below take x (rows, k), whatever lies between the rows, with such a
/// weight: of bfloat16, or of float32 where products may be rounded to TF32; rows on 16 bytes.
bool linear_fits(const Tensor& x, const Tensor& weight);

/// GELU(x w^T + bias) and its slope, (rows, n), for w (n, k) and bias (n,) float32.
std::tuple<Tensor, Tensor> linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias);

/// (x w) slope, (rows, n), for w (k, n), and the sums of that over the rows, (n,) float32: on the
/// side stream, where SumsBeside lends one.
std::tuple<Tensor, Tensor> linear_slope(const Tensor& x, const Tensor& weight, const Tensor& slope);

/// Which of a weight's dimensions the terms of a product are.
enum class Terms { kColumns, kRows };

/// Whether linear_product() takes these: as linear_fits(), on cards of compute capability 9.0, and
/// where cuBLAS was not found to be faster.
bool linear_product_fits(const Tensor& x, const Tensor& weight);

/// x w^T for w (n, k), or x w for w (k, n): (rows, n).
Tensor linear_product(const Tensor& x, const Tensor& weight, Terms terms);

// ---- The residual stream: kernels/normalization/params.h ----

using kernels::norm_width_fits;

struct AddNorm {
  Tensor sum;         // (..., width) float32; the residual itself where there is no branch
  Tensor normed;      // (..., width)
  Tensor statistics;  // (rows, 2)
};

/// residual (..., width) float32 contiguous; branch (..., width) of `type`, or undefined; bias
/// (width,) or undefined.
AddNorm add_norm(const Tensor& residual, const Tensor& branch, const Tensor& bias,
                 const Dropout& dropout, const Tensor& weight, const Tensor& norm_bias,
                 double epsilon, at::ScalarType type);

struct AddNormGradients {
  Tensor dresidual;
  Tensor dbranch;  // undefined where not wanted
  Tensor parts;    // (blocks, 2 or 3, width): weight, norm_bias, bias
};

AddNormGradients add_norm_backward(const Tensor& dnormed, const Tensor& dsum, const Tensor& sum,
                                   const Tensor& statistics, const Tensor& weight,
                                   const Dropout& dropout, bool has_bias, bool wants_branch);

// ---- Between the convolution and the scan: kernels/projections/params.h ----

/// Whether projections() takes u (batch, L, inner) with x_proj (width, inner) and dt_proj (inner,
/// dt_rank), all of bfloat16, or of float32 where products may be rounded to TF32.
bool projections_fit(const Tensor& u, const Tensor& x_proj, const Tensor& dt_proj);

struct Projections {
  Tensor projected;  // (batch, L, width): dt, B, C
  Tensor delta;      // (batch, L, inner), before bias and softplus
};

Projections projections(const Tensor& u, const Tensor& x_proj, const Tensor& dt_proj);

/// The convolution before them, with SiLU and without states; bias, mask and segment_starts may be
/// undefined.
struct Convolution {
  Tensor x;             // (batch, L, inner)
  Tensor weight, bias;  // (inner, width), (inner,) float32
  Tensor mask, segment_starts;
};

/// Whether convolved_projections() takes both.
bool convolved_projections_fit(const Convolution& convolution, const Tensor& x_proj,
                               const Tensor& dt_proj);

struct ConvolvedProjections {
  Tensor u;  // (batch, L, inner)
  Projections projections;
};

/// Both in one launch.
ConvolvedProjections convolved_projections(const Convolution& convolution, const Tensor& x_proj,
                                           const Tensor& dt_proj);

/// A scan with softplus and without states, as the op has it; mask and segment_starts may be
/// undefined.
struct ScanBackward {
  Tensor dy, u, delta, A, B, C, D, z, delta_bias, mask, segment_starts, checkpoints, y;
  Tensor du, ddelta, dB, dC, dz;  // written
};

struct ScanSums {
  Tensor dA, dD, ddelta_bias;  // nothing before add_up()
  Tensor parts;                // (blocks, batch, L, 2 d_state) float32, for projections_backward()
  std::function<void()> add_up;  // on the side stream, where SumsBeside lends one
};

/// The scan's backward pass, but for dB and dC: their sums over channels are left in blocks, or, in
/// one block, `parts` is undefined and dB and dC are written.
ScanSums scan_backward(const ScanBackward& scan);

/// Writes dt's gradient into dprojected (batch, L, width), those of B and C too where they come as
/// parts, and adds u's to du (batch, L, inner).
void projections_backward(const Tensor& ddelta, const Tensor& parts, const Tensor& dprojected,
                          const Tensor& du, const Tensor& x_proj, const Tensor& dt_proj);

// ---- Between the scans of two layers: kernels/token_chain/params.h ----

struct TokenChainNorm {
  Tensor weight, bias;  // (width,)
  double epsilon = 0.0;
};

struct TokenChainInputs {
  Tensor y;                    // (batch, L, inner) bfloat16
  Tensor residual;             // (batch, L, width) float32
  Tensor out_proj;             // (width, inner); all four matrices bfloat16
  Tensor first, first_bias;    // (hidden, width), (hidden,)
  Tensor second, second_bias;  // (width, hidden), (width,)
  Tensor in_proj;              // (next, width), or undefined: there is none
  std::array<TokenChainNorm, 2> norms;
  Dropout dropout;
};

/// What only the backward pass needs is undefined where it was not asked for.
struct TokenChain {
  std::array<Tensor, 2> sums;        // (batch, L, width) float32; the second is a result
  std::array<Tensor, 2> statistics;  // (rows, 2)
  std::array<Tensor, 2> normed;      // (batch, L, width) bfloat16; without in_proj a result
  Tensor hidden, slope;              // (batch, L, hidden) bfloat16
  Tensor next;                       // (batch, L, next) bfloat16, where there is an in_proj
};

/// Whether the chain takes layers of these widths on the device of x (..., width) on CUDA; a `next`
/// of 0: no in_proj.
bool token_chain_fits(const Tensor& x, int64_t inner, int64_t hidden, int64_t next);

/// keep: also what the backward pass needs.
TokenChain token_chain(const TokenChainInputs& in, bool keep);

struct TokenChainGradients {
  Tensor dy, dresidual;
  Tensor dhidden;                 // (batch, L, hidden) bfloat16, before the GELU
  std::array<Tensor, 2> dbranch;  // (batch, L, width) bfloat16: of out_proj y, of second hidden
  Tensor parts;                   // (blocks, columns): kernels::TokenChainBackwardParams
};

/// dnext (batch, L, next), or of the second norm, bfloat16; dsum (batch, L, width) float32 of
/// sums[1], or undefined: zero. `in` needs no biases and no residual, `saved` no hidden and no
/// normed.
TokenChainGradients token_chain_backward(const Tensor& dnext, const Tensor& dsum,
                                         const TokenChainInputs& in, const TokenChain& saved);

// ---- The token embedding: kernels/embedding/params.h ----

/// The norm that reads the tokens next, the first layer's; without a weight there is none here.
struct NextNorm {
  Tensor weight, bias;  // (width,)
  double epsilon = 0.0;
  at::ScalarType type = at::kFloat;  // of its result
};

struct EmbeddingInputs {
  std::array<Tensor, 3> values;   // of a step's tokens, in their order: (steps, features)
  std::array<Tensor, 3> weights;  // (width, features)
  std::array<Tensor, 3> biases;   // (width,)
  Tensor timesteps;               // (steps,) int64
  Tensor first_timesteps;         // those of the first kind where they are others, or undefined
  Tensor mask;                    // (steps,) bool, or undefined
  Tensor time;                    // (max_timestep, width)
  Tensor norm_weight, norm_bias;  // (width,)
  double epsilon;
  Dropout dropout;
  NextNorm next;
};

struct Embedding {
  Tensor out;              // (3 steps, width) float32
  Tensor tokens;           // the same before norm and dropout
  Tensor statistics;       // (3 steps, 2)
  Tensor token_mask;       // (3 steps,) bool where there is a mask
  Tensor normed;           // (3 steps, width) of the next norm's type, where there is one
  Tensor next_statistics;  // (3 steps, 2) likewise
};

Embedding embed(const EmbeddingInputs& in);

struct EmbeddingNormGradients {
  Tensor dtokens;  // (3 steps, width)
  Tensor dsteps;   // (steps, width): a step's tokens added up
  Tensor parts;    // (blocks, 2 or 4, width) of weight and bias of the norm, of the next norm
  Tensor tickets;  // for embed_gradients
};

/// dout (3 steps, width), or undefined: zero. dnormed: that of the next norm's result, or
/// undefined: none came, and the next norm is left out. Of the embedding tokens and both
/// statistics.
EmbeddingNormGradients embed_norm_backward(const Tensor& dout, const Tensor& dnormed,
                                           const Embedding& embedding, const EmbeddingInputs& in);

struct EmbeddingGradients {
  Tensor linear;  // (sum of (features + 1) width,): each kind's weight (width, features), its bias
  Tensor time;    // (max_timestep, width)
};

EmbeddingGradients embed_gradients(const EmbeddingNormGradients& norm, const EmbeddingInputs& in);

// ---- The action head with its loss: kernels/action_head/params.h ----

struct ActionHead {
  Tensor losses;  // (blocks,): the loss is their sum
  Tensor slopes;  // (steps, act_dim)
};

/// y (3 steps, width) contiguous, targets (steps, act_dim), mask (steps,) bool.
ActionHead action_head(const Tensor& y, const Tensor& weight, const Tensor& bias,
                       const Tensor& targets, const Tensor& mask);

/// dy, and parts (blocks, act_dim (width + 1)) of weight and then of bias.
std::array<Tensor, 2> action_head_backward(const Tensor& dloss, const Tensor& y,
                                           const Tensor& weight, const Tensor& slopes);

// ---- The token embedding of games: kernels/game_embedding/params.h ----

using kernels::game_sizes_fit;

struct GameInputs {
  Tensor returns_to_go;               // (batch, K, 1) float32
  Tensor states;                      // (batch, K, width) float32
  Tensor actions;                     // (batch, K) int64
  Tensor timesteps;                   // (batch,) int64
  Tensor mask;                        // (batch, K) bool, or undefined
  Tensor return_weight, return_bias;  // (width, 1), (width,)
  Tensor action_table;                // (num_actions, width)
  Tensor local, global;               // (places, width), (max_timestep, width)
  Dropout dropout;
};

struct GameEmbedding {
  Tensor out;         // (batch, 3 K, width) float32
  Tensor token_mask;  // (batch, 3 K) bool where there is a mask
};

/// Everything contiguous.
GameEmbedding game_embed(const GameInputs& in);

struct GameEmbeddingGradients {
  Tensor dstates;
  Tensor parts;  // (blocks, num_actions + 2, width): the table, return_weight, return_bias
  Tensor dlocal, dglobal;
};

GameEmbeddingGradients game_embed_backward(const Tensor& dout, const GameInputs& in);

// ---- The recurrent policy's step: kernels/policy_step/params.h ----

/// float32, contiguous, as in kernels::PolicyStepParams.
struct PolicyStep {
  kernels::PolicyStepSizes sizes;
  kernels::PolicyStepPlan plan;
  Tensor packed;  // (PolicyStepLayout::size,)
  Tensor time;    // (max_timestep, d_model)
  Tensor states;  // (n_layer, num_envs, kPolicyStateRows, d_inner)
};

/// The plan for a model of these sizes on a device; {0, 0} where the step cannot run there.
kernels::PolicyStepPlan policy_step_plan(const kernels::PolicyStepSizes& sizes, int64_t num_envs,
                                         at::Device device);

/// seen (num_envs, state_dim + 3); actions (num_envs, act_dim), those of the step before, become
/// this one's. Moves the states.
void policy_step(const PolicyStep& step, const Tensor& seen, const Tensor& actions);

// ---- Between an image encoder's convolutions: kernels/frames/params.h ----

/// strips (batch, K + 3, 84, 84) uint8 contiguous -> (batch K, 64, 21, 21) of `type`, channels
/// innermost.
Tensor fold_frames(const Tensor& strips, at::ScalarType type);

/// raw (n, channels, rows, columns), channels innermost -> relu(raw + bias), folded: (n, fold fold
/// channels, rows / fold, columns / fold).
Tensor bias_relu_fold(const Tensor& raw, const Tensor& bias, int64_t fold);

struct BiasReluGradients {
  Tensor draw;   // as raw
  Tensor parts;  // (blocks, channels) of the bias
};

/// dout and out as bias_relu_fold returned out.
BiasReluGradients bias_relu_unfold(const Tensor& dout, const Tensor& out, int64_t fold);

/// The first convolution with bias, ReLU and folding by 2: strips as fold_frames takes them, weight
/// (32, 4, 2, 2, 4, 4) bfloat16 contiguous -> (batch K, 128, 10, 10) bfloat16, channels innermost.
Tensor first_convolution(const Tensor& strips, const Tensor& weight, const Tensor& bias);

/// Sums to be added up, (blocks, 32 256 + 32): of the weight as above, and of the bias.
Tensor first_convolution_backward(const Tensor& dout, const Tensor& out, const Tensor& strips);

// ---- The step's beginning and end: kernels/sampling, kernels/optimizer ----

/// What a step leaves on the device for the next one, and for who reads the metrics.
struct StepState {
  Tensor step;          // () int64: optimizer steps done
  Tensor set_step;      // () int64, of those done on the step's set; undefined: there is one set
  Tensor scalars;       // (8,) float32: two kernels::StepScalars, the second of the set's own
  Tensor dropout_keys;  // (n,) int64
  Tensor loss_sum;      // () float64
  Tensor norm_sum;      // () float64
  Tensor skipped;       // (3,) int64: kernels::SkippedSteps
  Tensor set_skipped;   // () int64, on the step's set; undefined: there is one set
};

/// Recorded episodes, standardised and scaled; see kernels::Trajectories.
struct TrajectoryTensors {
  Tensor states, actions, returns_to_go, starts, padding_state;
  float padding_action = 0.0F;
};

/// A batch's tensors and its sizes; see kernels::SegmentBatch.
struct BatchTensors {
  Tensor states, actions, returns_to_go, timesteps, mask;
};

struct BeginStep {
  uint64_t seed;
  common::LearningRate learning_rate;
  double beta1, beta2;
  int64_t max_timestep;
  int64_t first_sample;  // of the step's batch, to which the first row belongs
};

/// Writes scalars and dropout keys of the step, and the batch where the trajectories are there.
void begin_step(const BeginStep& options, const StepState& state,
                const TrajectoryTensors* trajectories, const BatchTensors& batch);

/// Recorded games; see kernels::Games.
struct GameTensors {
  Tensor frames, actions, returns_to_go, starts;
};

/// A batch of them; see kernels::StripBatch.
struct StripTensors {
  Tensor strips, actions, returns_to_go, timesteps, mask;
};

/// Writes the batch of the state's step.
void draw_strips(const BeginStep& options, const StepState& state, const GameTensors& games,
                 const StripTensors& batch);

/// What the optimizer moves: lists of one length. A mirror is undefined, or of the parameter's
/// size: bfloat16, the parameter rounded; float32, its decay_rates.
struct AdamWTensors {
  std::vector<Tensor> parameters, gradients, first_moments, second_moments, mirrors;
  std::vector<double> weight_decays, rates;  // rates: of the learning rate
  std::vector<bool> of_set;                  // moments as old as the steps on its set
};

struct AdamWOptions {
  double beta1, beta2, epsilon, gradient_clip;
  int64_t most_skipped;
};

/// Clips and steps; adds `loss` and the norm to the state's sums, counts the step. Moves nothing
/// where the loss or the norm is not finite, which the state counts; with more than `most_skipped`
/// of these in a row it moves nothing any more. Returns the norm before the clip, ().
Tensor adamw(const AdamWTensors& tensors, const AdamWOptions& options, const Tensor& loss,
             const StepState& state);

}  // namespace dmamba::ops::cuda_only
