// Finding the shards of a recording in the DQN-replay layout.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "dmamba/data/frame_store.h"

namespace dmamba::data {

/// The fields of a shard, one file each.
enum ReplayField { kObservation, kAction, kReward, kTerminal };
constexpr std::array kReplayFields = {"observation", "action", "reward", "terminal"};

/// The files `$store$_<field>_ckpt.<number>.gz` of one number.
struct ReplayShard {
  std::int64_t number = 0;
  std::array<std::string, kReplayFields.size()> files;  ///< paths, by ReplayField
};

struct Recording {
  std::string folder;  ///< where the files lie
  std::string game;
  std::vector<ReplayShard> shards;  ///< by number, ascending; at least 1
};

/// Finds the recording that `path` leads to (see open_replay) and the shards that
/// selection.buffers asks for. Throws DataError: nothing there, several to choose from, an unknown
/// game, a shard without all its files, fewer shards than asked for.
Recording find_recording(const std::string& path, const ReplaySelection& selection);

/// Whether two names of games differ at most in case.
bool same_game(const std::string& a, const std::string& b);

/// The numbers of the shards, such as "0-3, 7".
std::string shard_list(const std::vector<ReplayShard>& shards);

}  // namespace dmamba::data
