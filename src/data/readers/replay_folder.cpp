// The layout of Google's DQN replay dataset (research.google/resources/datasets/dqn-replay), and
// the folders that people copy it into.
#include "data/readers/replay_folder.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLogs = "replay_logs";
constexpr std::string_view kPrefix = "$store$_";
constexpr std::string_view kMiddle = "_ckpt.";
constexpr std::string_view kSuffix = ".gz";
constexpr std::size_t kMostListed = 8;

struct FileName {
  std::int64_t number;
  std::size_t field;
};

std::optional<FileName> parse_name(std::string_view name) {
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  name.remove_suffix(kSuffix.size());
  for (std::size_t field = 0; field < kReplayFields.size(); ++field) {
    const std::string start = kReplayFields[field] + std::string(kMiddle);
    if (!name.starts_with(start)) continue;
    const std::string_view digits = name.substr(start.size());
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    const bool whole = error == std::errc() && end == digits.data() + digits.size();
    // As shard_file() writes it: two names of one shard could not both be read.
    if (!whole || std::to_string(number) != digits || number < 0) break;
    return FileName{number, field};
  }
  return std::nullopt;
}

std::string shard_file(std::size_t field, std::int64_t number) {
  return std::string(kPrefix) + kReplayFields[field] + std::string(kMiddle) +
         std::to_string(number) + std::string(kSuffix);
}

// Names in a folder, sorted; none where it cannot be read.
std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kMostListed); ++i) {
    text += (i == 0 ? "" : ", ") + names[i];
  }
  if (names.size() > kMostListed) {
    text += " and " + std::to_string(names.size() - kMostListed) + " more";
  }
  return names.empty() ? "nothing" : text;
}

bool holds_shards(const fs::path& folder) {
  const auto names = names_in(folder);
  return std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return parse_name(name).has_value(); });
}

// The subfolders that are runs, sorted.
std::vector<std::string> runs_in(const fs::path& folder) {
  std::vector<std::string> runs = names_in(folder);
  std::erase_if(runs, [&](const std::string& run) { return !holds_shards(folder / run / kLogs); });
  return runs;
}

// The game by the names of the folders above the files: <Game>/<run>/replay_logs.
bool is_number(const std::string& name) {
  return !name.empty() && std::all_of(name.begin(), name.end(),
                                      [](unsigned char c) { return std::isdigit(c) != 0; });
}

// Whether the folder is `<Game>/<run>/replay_logs`: other ones don't tell their game.
bool lies_in_a_run(const fs::path& folder) {
  std::error_code error;
  const fs::path place = fs::weakly_canonical(folder, error);
  return place.filename() == kLogs && is_number(place.parent_path().filename().string());
}

std::string game_above(const fs::path& folder) {
  std::error_code error;
  fs::path place = fs::weakly_canonical(folder, error);
  if (place.filename() == kLogs) place = place.parent_path();
  if (is_number(place.filename().string())) place = place.parent_path();
  return place.filename().string();
}

struct Place {
  fs::path folder;
  std::string game;
};

// Of the folder of one game: <run>/replay_logs.
Place only_run(const fs::path& folder, const std::string& game,
               const std::vector<std::string>& runs) {
  if (runs.size() > 1) {
    throw DataError(folder.string() + ": holds " + std::to_string(runs.size()) + " runs (" +
                    list(runs) + "); give the path of one of them");
  }
  return {folder / runs.front() / kLogs, game};
}

Place choose_game(const fs::path& path, const std::vector<std::string>& games,
                  const std::string& wanted) {
  if (wanted.empty() && games.size() > 1) {
    throw DataError(path.string() + ": holds " + std::to_string(games.size()) + " games (" +
                    list(games) + "); choose one of them: dataset.environment=ALE/" +
                    games.front() + "-v5 in a configuration, game=\"" + games.front() +
                    "\" (--game) elsewhere");
  }
  for (const std::string& game : games) {
    if (wanted.empty() || same_game(game, wanted)) {
      return only_run(path / game, game, runs_in(path / game));
    }
  }
  throw DataError(path.string() + ": holds no game '" + wanted + "'; there are " + list(games) +
                  " (dataset.environment=ALE/" + games.front() + "-v5 chooses that one)");
}

Place find_place(const fs::path& path, const std::string& wanted) {
  for (const fs::path& folder : {path, path / kLogs}) {
    if (!holds_shards(folder)) continue;
    const std::string game = game_above(folder);
    if (!wanted.empty() && lies_in_a_run(folder) && !same_game(game, wanted)) {
      throw DataError(path.string() + ": holds no game '" + wanted + "': its folders call it '" +
                      game + "'");
    }
    return {folder, wanted.empty() ? game : wanted};
  }
  const std::vector<std::string> names = names_in(path);
  if (const auto runs = runs_in(path); !runs.empty()) {
    std::string game = game_above(path);
    if (!wanted.empty() && !same_game(game, wanted)) {
      throw DataError(path.string() + ": holds no game '" + wanted + "': it is the folder of '" +
                      game + "'");
    }
    return only_run(path, game, runs);
  }
  std::vector<std::string> games = names;
  std::erase_if(games, [&](const std::string& game) { return runs_in(path / game).empty(); });
  if (games.empty()) {
    throw DataError(path.string() +
                    ": no recording in the DQN-replay layout: neither it nor replay_logs, "
                    "<run>/replay_logs or <Game>/<run>/replay_logs in it holds a file "
                    "$store$_observation_ckpt.N.gz; the folder has " +
                    list(names));
  }
  return choose_game(path, games, wanted);
}

std::vector<ReplayShard> shards_in(const fs::path& folder) {
  std::map<std::int64_t, ReplayShard> shards;
  for (const std::string& name : names_in(folder)) {
    if (const auto parsed = parse_name(name)) {
      ReplayShard& shard = shards[parsed->number];
      shard.number = parsed->number;
      shard.files[parsed->field] = (folder / name).string();
    }
  }
  std::vector<std::string> missing;
  std::vector<ReplayShard> result;
  for (auto& [number, shard] : shards) {
    for (std::size_t field = 0; field < kReplayFields.size(); ++field) {
      if (shard.files[field].empty()) missing.push_back(shard_file(field, number));
    }
    result.push_back(std::move(shard));
  }
  if (!missing.empty()) {
    throw DataError(folder.string() + ": incomplete shards: " + list(missing) +
                    " missing; download what is missing, or move the rest of those shards away");
  }
  return result;
}

}  // namespace

Recording find_recording(const std::string& path, const ReplaySelection& selection) {
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw DataError(path + ": no such file or folder");
  }
  Place place = find_place(path, selection.game);
  Recording recording{place.folder.string(), std::move(place.game), shards_in(place.folder)};
  std::vector<ReplayShard>& shards = recording.shards;
  const auto count = static_cast<std::int64_t>(shards.size());
  if (selection.buffers > count) {
    throw DataError(recording.folder + ": the last " + std::to_string(selection.buffers) +
                    " shards are asked for, but there are " + std::to_string(count) + " (" +
                    shard_list(shards) + "); choose buffers of at most " + std::to_string(count) +
                    ", or 0 for all");
  }
  if (selection.buffers > 0) {
    shards.erase(shards.begin(), shards.end() - selection.buffers);
  }
  return recording;
}

bool same_game(const std::string& a, const std::string& b) {
  // As dmamba.envs.games.plain: ms_pacman and ALE/MsPacman-v5 are one game.
  const auto plain = [](std::string_view name) {
    if (name.starts_with("ALE/")) name.remove_prefix(4);
    if (name.ends_with("-v5")) name.remove_suffix(3);
    std::string text;
    for (const char c : name) {
      if (c != '_') text += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    return text;
  };
  return plain(a) == plain(b);
}

std::string shard_list(const std::vector<ReplayShard>& shards) {
  std::string text;
  for (std::size_t i = 0; i < shards.size();) {
    std::size_t last = i;
    while (last + 1 < shards.size() && shards[last + 1].number == shards[last].number + 1) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(shards[i].number);
    if (last > i) text += "-" + std::to_string(shards[last].number);
    i = last + 1;
  }
  return text;
}

}  // namespace dmamba::data
