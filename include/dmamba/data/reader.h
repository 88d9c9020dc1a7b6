// Opening dataset files of any known format.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dmamba/data/frame_store.h"
#include "dmamba/data/trajectory_store.h"

namespace dmamba::data {

/// Where a dataset's transitions are while it is in use. What is drawn from it is the same.
struct Storage {
  /// memory: all are read when the dataset is opened.
  /// disk:   rows are read as they are asked for. Opening goes over the file once, and copies what
  ///         is not contiguous float32 there, and the returns-to-go, to files without a name.
  /// auto:   disk where they would take more than half of the memory that is free, or that is
  ///         allowed to the process's control group.
  std::string kind = "auto";
  std::string scratch = {};        ///< folder of those files; empty: the system's temporary one
  std::uint64_t memory_limit = 0;  ///< of auto, in bytes, in place of that half; 0: that half
  ReadProgress progress = {};      ///< called while a dataset that stays on disk is gone over
};

/// Opens a dataset file.
///
/// `format` is one of dataset_formats(), or "auto": told from the file's content.
///   d4rl: one HDF5 file with `observations` (N, state_dim) and `actions` (N, act_dim), float32 or
///         float64; `rewards` (N,) or (N, 1), likewise; `terminals` and `timeouts` (N,) or (N, 1),
///         bool, uint8 or int8 of 0 and 1. `timeouts` is required: without it the ends of episodes
///         cut by the time limit cannot be known, and two episodes would be read as one. Scalars of
///         the group `metadata`, where there is one, become the store's metadata. Other datasets
///         (next_observations, infos) are not read.
///   minari: the HDF5 file of a dataset of Minari's; see open_minari.
///
/// Returns a store whose name() is `path`. Throws DataError where the file is missing, unreadable,
/// damaged, truncated, of no known format, or its content is unusable (as MemoryStore::create, and
/// wrong rank or type), and where there is no room for scratch files; ConfigError for an unknown
/// format or storage. May be called from any thread.
///
///     auto store = dmamba::data::open_dataset("hopper-medium.hdf5");
std::shared_ptr<TrajectoryStore> open_dataset(const std::string& path,
                                              const std::string& format = "auto",
                                              const Storage& storage = {});

/// Reads the HDF5 file of a dataset of Minari's (https://minari.farama.org), `main_data.hdf5`.
///
/// An episode is a group `episode_<i>`, i from 0 on, with `observations` (T + 1, state_dim) or
/// (T, state_dim), `actions` (T, act_dim) and `rewards` (T,), of floats, observations and rewards
/// also of integers; `terminations` and `truncations` (T,), bool, uint8 or int8, set in the last
/// row at most. Observations may be groups of such datasets, dictionaries and tuples, which are put
/// side by side in the order of their names and numbers; the store's metadata then has
/// `observation_parts`. An episode that neither flag ends was cut where its recording stopped;
/// `episodes_without_end` counts these. Infos are not read.
///
/// `metadata` is what the dataset's metadata.json says, which is not read here. Throws DataError as
/// open_dataset does, naming episode and key; also for discrete actions and pictures.
std::shared_ptr<TrajectoryStore> open_minari(const std::string& path, Metadata metadata = {},
                                             const Storage& storage = {});

/// The names that open_dataset takes as its format, without "auto".
std::vector<std::string> dataset_formats();

}  // namespace dmamba::data
