// Finding and mapping converted recordings. Nothing in a file is believed unchecked.
#include "data/readers/replay_cache.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "data/readers/file_check.h"
#include "data/readers/hdf5_file.h"
#include "data/readers/readers.h"
#include "data/readers/replay_cache_format.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

namespace fs = std::filesystem;

constexpr std::array kDatasets = {"frames", "actions", "rewards", "episode_ends", "terminated"};

// FNV-1a of 128 bits (Fowler, Noll, Vo).
std::string hash(const std::string& text) {
  __extension__ using Wide = unsigned __int128;
  constexpr Wide kPrime = (Wide{1} << 88) + 0x13b;
  Wide state = (Wide{0x6c62272e07bb0142u} << 64) + 0x62b821756295c58du;
  for (const char c : text) state = (state ^ static_cast<unsigned char>(c)) * kPrime;
  std::string digits;
  for (int shift = 124; shift >= 0; shift -= 4) {
    digits += "0123456789abcdef"[static_cast<unsigned>(state >> shift) & 15u];
  }
  return digits;
}

// Throws where the file is shorter than its superblock (version 2 or 3) says. HDF5 would notice
// too, but its diagnosis opens what is left, and a file cut off in its headers it cannot close
// again.
void require_whole(const std::string& path) {
  constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
  constexpr std::size_t kEndOfFile = 28;  // where the address stands, little-endian
  const std::uint64_t size = require_readable_file(path);
  std::array<char, kEndOfFile + 8> block{};
  std::ifstream(path, std::ios::binary).read(block.data(), block.size());
  const bool known = std::string_view(block.data(), kSignature.size()) == kSignature &&
                     (block[8] == 2 || block[8] == 3) && block[9] == 8;
  std::uint64_t end = 0;
  for (std::size_t i = 8; i-- > 0;) {
    end = end << 8 | static_cast<unsigned char>(block[kEndOfFile + i]);
  }
  if (known && size < end) {
    throw DataError(path + ": the file is truncated: it has " + std::to_string(size) + " of " +
                    std::to_string(end) + " bytes; copy it or convert the recording again");
  }
}

void require_datasets(const Hdf5File& file) {
  const std::vector<std::string> present = file.names("/");
  for (const char* name : kDatasets) {
    if (std::find(present.begin(), present.end(), name) == present.end()) {
      throw DataError(file.path() + ": no converted recording: it has no dataset '" + name + "'");
    }
  }
}

// The number of rows of a dataset of this type and shape of a row.
std::int64_t rows_of(const Hdf5File& file, const std::string& name, const std::string& dtype,
                     const std::vector<std::uint64_t>& row_shape) {
  const DatasetInfo info = file.info(name);
  const bool fits = !info.shape.empty() && std::equal(info.shape.begin() + 1, info.shape.end(),
                                                      row_shape.begin(), row_shape.end());
  if (info.dtype != dtype || !fits) {
    throw DataError(file.path() + ": dataset '" + name + "' of shape " + info.shape_text() +
                    " and type " + info.dtype + " is not that of a converted recording");
  }
  return static_cast<std::int64_t>(info.shape.front());
}

std::string scalar(const Hdf5File& file, const std::map<std::string, std::string>& scalars,
                   const std::string& name) {
  const auto found = scalars.find(name);
  if (found == scalars.end()) {
    throw DataError(file.path() + ": no converted recording: '" + std::string(kConversion) + "/" +
                    name + "' is missing");
  }
  return found->second;
}

FrameStore::Columns read_columns(const Hdf5File& file) {
  FrameStore::Columns columns;
  const std::int64_t rows =
      rows_of(file, "frames", "uint8",
              {static_cast<std::uint64_t>(kFrameSide), static_cast<std::uint64_t>(kFrameSide)});
  for (const auto& [name, dtype] : {std::pair{"actions", "int32"}, {"rewards", "float32"}}) {
    if (const std::int64_t other = rows_of(file, name, dtype, {}); other != rows) {
      throw DataError(file.path() + ": " + name + " has " + std::to_string(other) +
                      " rows, but frames " + std::to_string(rows) + "; the file is damaged");
    }
  }
  rows_of(file, "episode_ends", "int64", {});
  rows_of(file, "terminated", "uint8", {});
  const std::vector<std::int64_t> actions = file.read_integers("actions");
  columns.actions.assign(actions.begin(), actions.end());
  columns.rewards = file.read_floats("rewards");
  columns.episode_ends = file.read_integers("episode_ends");
  columns.terminated = file.read_flags("terminated");
  return columns;
}

FrameStore::Frames map_frames(const std::string& path, std::uint64_t offset, std::uint64_t bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    throw DataError(path +
                    ": cannot be opened for reading: " + std::generic_category().message(errno));
  }
  const std::uint64_t lead = offset % static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t size = lead + bytes;
  // No advice: a segment's frames lie side by side, so the kernel's reading ahead helps.
  void* base = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(offset - lead));
  const int code = errno;
  ::close(fd);
  if (base == MAP_FAILED) {
    throw DataError(path + ": cannot be mapped: " + std::generic_category().message(code));
  }
  const auto unmap = [size](const void* p) { ::munmap(const_cast<void*>(p), size); };
  return {std::shared_ptr<const void>(base, unmap), static_cast<const std::uint8_t*>(base) + lead};
}

}  // namespace

std::string replay_fingerprint(const Recording& recording, const ReplaySelection& selection) {
  std::string text = kConversionVersion;
  const auto add = [&](const std::string& part) { text += "\n" + part; };
  std::error_code error;
  add(fs::weakly_canonical(recording.folder, error).string());
  add(recording.game);
  add(std::to_string(selection.transitions));
  if (selection.transitions > 0) {  // otherwise all is read, whatever the visits' order
    add(std::to_string(selection.trajectories_per_buffer));
    add(std::to_string(selection.seed));
  }
  for (const ReplayShard& shard : recording.shards) {
    for (const std::string& file : shard.files) {
      const auto size = fs::file_size(file, error);
      const auto time = error ? fs::file_time_type() : fs::last_write_time(file, error);
      if (error) throw DataError(file + ": cannot be looked at: " + error.message());
      add(fs::path(file).filename().string());
      add(std::to_string(size));
      add(std::to_string(time.time_since_epoch().count()));
    }
  }
  return hash(text);
}

std::string converted_path(const std::string& folder, const Recording& recording,
                           const std::string& fingerprint) {
  std::string game = recording.game.empty() ? "replay" : recording.game;
  const auto unusual = [](unsigned char c) { return std::isalnum(c) == 0 && c != '_' && c != '-'; };
  std::replace_if(game.begin(), game.end(), unusual, '_');
  return (fs::path(folder) / (game + "-" + fingerprint.substr(0, 16) + ".h5")).string();
}

std::shared_ptr<FrameStore> open_converted(const std::string& path, const std::string& name,
                                           const std::string& fingerprint) {
  if (!is_hdf5(path)) return open_converted_here(path, name, fingerprint);
  return read_checked(path, "converted", {},
                      [&] { return open_converted_here(path, name, fingerprint); });
}

std::shared_ptr<FrameStore> open_converted_here(const std::string& path, const std::string& name,
                                                const std::string& fingerprint) {
  require_whole(path);
  const Hdf5File file(path);
  require_datasets(file);
  const auto conversion = file.read_scalars(kConversion);
  const std::string version = scalar(file, conversion, "version");
  if (version != kConversionVersion) {
    throw DataError(path + ": a converted recording of format version " + version +
                    "; this program knows version " + kConversionVersion +
                    "; convert the recording again");
  }
  const std::string found = scalar(file, conversion, "fingerprint");
  if (!fingerprint.empty() && found != fingerprint) {
    throw DataError(path + ": the conversion of another recording or selection (fingerprint " +
                    found + ", not " + fingerprint + ")");
  }
  FrameStore::Columns columns = read_columns(file);
  const std::string dropped = scalar(file, conversion, "dropped");
  const bool digits = !dropped.empty() && dropped.size() <= 18 &&
                      std::all_of(dropped.begin(), dropped.end(),
                                  [](unsigned char c) { return std::isdigit(c) != 0; });
  if (!digits) {
    throw DataError(path + ": conversion/dropped is " + dropped + "; it must be a number");
  }
  columns.dropped = std::stoll(dropped);
  const std::uint64_t bytes = columns.rewards.size() * static_cast<std::uint64_t>(kFrameBytes);
  FrameStore::Frames frames;
  if (bytes > 0) frames = map_frames(path, file.contiguous_offset("frames"), bytes);
  try {
    return FrameStore::create(std::move(frames), std::move(columns), name,
                              file.read_scalars(kMetadata));
  } catch (const DataError& error) {
    throw DataError(path + ": the converted recording is damaged: " + error.what());
  }
}

}  // namespace dmamba::data
