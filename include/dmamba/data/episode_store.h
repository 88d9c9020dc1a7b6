// What stores of recorded episodes have in common, whatever a state is in them.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace dmamba::data {

/// One recorded episode: transitions [start, start + length) of its store.
struct Episode {
  std::int64_t start = 0;   ///< first transition
  std::int64_t length = 0;  ///< transitions, at least 1
  double ret = 0.0;         ///< undiscounted sum of the rewards as recorded
  bool terminated = false;  ///< ended by the environment; false: cut by the time limit
};

/// Short facts about a dataset (environment, algorithm, ...), as its file states them.
using Metadata = std::map<std::string, std::string>;

/// Episodes lie back to back: episode i + 1 starts where episode i ends, the first at 0. Stores are
/// immutable once built, and their const members may be called from any number of threads.
class EpisodeStore {
 public:
  virtual ~EpisodeStore() = default;
  EpisodeStore() = default;
  EpisodeStore(const EpisodeStore&) = delete;
  EpisodeStore& operator=(const EpisodeStore&) = delete;

  virtual std::int64_t num_transitions() const = 0;  ///< transitions of all episodes, at least 1
  virtual std::int64_t num_episodes() const = 0;     ///< at least 1

  /// Transitions of episodes whose beginning or end is missing. They are not part of the store.
  virtual std::int64_t dropped_transitions() const = 0;

  /// Episode i. Throws std::out_of_range unless 0 <= i < num_episodes().
  virtual Episode episode(std::int64_t i) const = 0;

  /// Path of the file or folder, or the name that was given to the arrays; error messages start
  /// with it.
  virtual const std::string& name() const = 0;
  virtual const Metadata& metadata() const = 0;
};

}  // namespace dmamba::data
