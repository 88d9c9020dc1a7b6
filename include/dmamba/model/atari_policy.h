// Playing with a trained model, for a batch of games whose episodes end at different times.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dmamba/model/atari.h"

namespace dmamba::model {

class DeviceStep;

struct AtariPolicyOptions {
  std::string kind = "windowed";  ///< windowed: re-reads the last K steps; recurrent: O(1) a step
  int64_t num_envs = 1;
  double rtg_scale = 1.0;    ///< return per model unit, as in training
  double temperature = 1.0;  ///< of the softmax that actions are drawn from; 0: the likeliest
  /// As model::PolicyOptions; with `position: segment`, at most the model's.
  int64_t context_length = 0;
  int64_t forget_after = 0;
};

/// One step of the loop: act(frames), step the games, observe(rewards); reset() begins an episode
/// in any subset of the games. A frame is encoded once, whatever K is: the windows hold what came
/// of it. An action is drawn by (seed of the episode, step), so that it does not depend on the
/// other games of the batch.
///
/// A recurrent policy with `position: segment`, whose places end after K steps, begins a new
/// segment with the last K / 2 steps whenever it has taken in K; with `position: timestep` it goes
/// on for ever. Both kinds agree to rounding while an episode is no longer than K.
///
/// The model computes where its parameters are, which must not change; tensors come and go on the
/// CPU. Not thread-safe; keeps the model, changes no parameter.
class AtariPolicy {
 public:
  /// Throws ConfigError for an unknown kind, or an option out of range.
  AtariPolicy(AtariDMamba model, AtariPolicyOptions options);
  AtariPolicy(AtariPolicy&&) noexcept;
  ~AtariPolicy();

  /// Begins an episode where `which` (num_envs,) bool is true; targets (num_envs,) float64,
  /// unscaled returns; seeds (num_envs,) int64. All on the CPU.
  void reset(const torch::Tensor& which, const torch::Tensor& targets, const torch::Tensor& seeds);

  /// Actions (num_envs,) int64 for frames (num_envs, 4, 84, 84) uint8, oldest first, zero before
  /// the episode's start.
  torch::Tensor act(const torch::Tensor& frames);

  /// The logits (num_envs, num_actions) float32 that the last act() drew from.
  const torch::Tensor& logits() const { return logits_; }

  /// What the last actions earned, (num_envs,), in the returns' unit: returns-to-go go down by it,
  /// time goes on.
  void observe(const torch::Tensor& rewards);

 private:
  /// What a step needs of the CPU; on CUDA there is a pinned copy of it.
  struct Inputs {
    torch::Tensor frames;   // (num_envs, 4, 84, 84) uint8
    torch::Tensor rtg;      // (num_envs, 1) float32, scaled
    torch::Tensor numbers;  // (num_envs, 2) int64: position in the segment, its first step
  };
  Inputs make_inputs(torch::Device device, bool pinned) const;
  bool keeps_windows() const;
  int64_t window() const;
  void forget();
  void begin_long_segments_anew();
  void fill(const Inputs& inputs, const torch::Tensor& frames) const;
  void take_in(const torch::Tensor& states);
  torch::Tensor answer();
  torch::Tensor draw() const;

  AtariDMamba model_;
  AtariPolicyOptions options_;
  torch::Device device_;  // the model's
  // On the CPU, (num_envs,):
  torch::Tensor rtg_;       // float64
  torch::Tensor timestep_;  // int64, in the episode
  torch::Tensor first_;     // int64: step that the segment began with
  torch::Tensor seeds_;     // int64
  torch::Tensor logits_;
  // On the device:
  Inputs inputs_, pinned_;
  torch::Tensor answer_;                          // (num_envs, num_actions)
  torch::Tensor newest_;                          // (num_envs, d_model): the newest frames, encoded
  torch::Tensor last_action_;                     // (num_envs,) int64
  torch::Tensor states_, actions_, rtgs_, mask_;  // the last K steps, (num_envs, K, ...)
  RecurrentState state_;
  std::unique_ptr<DeviceStep> on_device_;  // on CUDA
};

}  // namespace dmamba::model
