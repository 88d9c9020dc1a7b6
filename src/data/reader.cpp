// The table of dataset formats, and the choice of one for a file.
#include "dmamba/data/reader.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "data/disk_store.h"
#include "data/readers/file_check.h"
#include "data/readers/readers.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

struct Format {
  const char* name;
  bool (*accepts)(const std::string& path);  // from the content alone; never throws
  std::shared_ptr<TrajectoryStore> (*open)(const std::string& path, const Storage& storage);
};

// Asked in this order when the format is to be told from the file.
constexpr std::array kFormats = {
    Format{"minari", looks_like_minari, open_minari_file},
    Format{"d4rl", is_hdf5, open_d4rl},
};

std::string format_list() {
  std::string list;
  for (const Format& format : kFormats) {
    list += (list.empty() ? "" : ", ") + std::string(format.name);
  }
  return list;
}

bool known(const std::string& format) {
  return format == "auto" || std::any_of(kFormats.begin(), kFormats.end(),
                                         [&](const Format& row) { return format == row.name; });
}

}  // namespace

std::shared_ptr<TrajectoryStore> open_dataset(const std::string& path, const std::string& format,
                                              const Storage& storage) {
  // What is no HDF5 file is refused by code of our own.
  if (!is_hdf5(path) || !known(format)) return open_dataset_here(path, format, storage);
  require_kind(storage);
  return read_checked(path, format, storage,
                      [&] { return open_dataset_here(path, format, storage); });
}

std::shared_ptr<TrajectoryStore> open_dataset_here(const std::string& path,
                                                   const std::string& format,
                                                   const Storage& storage) {
  for (const Format& candidate : kFormats) {
    if (format == candidate.name || (format == "auto" && candidate.accepts(path))) {
      return candidate.open(path, storage);
    }
  }
  if (format != "auto") {
    throw ConfigError("unknown dataset format '" + format + "' for " + path +
                      "; known formats: auto, " + format_list());
  }
  require_readable_file(path);
  throw DataError(path + ": not a dataset of a known format (" + format_list() +
                  "): it is no HDF5 file, it begins with " + file_beginning(path) +
                  "; was the download complete?");
}

std::vector<std::string> dataset_formats() {
  std::vector<std::string> names;
  names.reserve(kFormats.size());
  for (const Format& format : kFormats) {
    names.emplace_back(format.name);
  }
  return names;
}

bool is_hdf5(const std::string& path) {
  // HDF5's signature stands at byte 0 or, after a user block, at 512, 1024, 2048, ...
  constexpr std::array<char, 8> kSignature = {'\x89', 'H', 'D', 'F', '\r', '\n', '\x1a', '\n'};
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return false;
  }
  std::ifstream file(path, std::ios::binary);
  std::array<char, 8> bytes{};
  for (std::streamoff offset = 0; file.seekg(offset) && file.read(bytes.data(), bytes.size());
       offset = offset == 0 ? 512 : 2 * offset) {
    if (bytes == kSignature) {
      return true;
    }
  }
  return false;
}

std::uint64_t require_readable_file(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    throw DataError(path + ": no such file");
  }
  if (error) {
    throw DataError(path + ": cannot be looked at: " + error.message());
  }
  if (fs::is_directory(status)) {
    throw DataError(path + ": is a directory; give the path of the dataset file in it");
  }
  // Opening a pipe or a device could block for ever.
  if (!fs::is_regular_file(status)) {
    throw DataError(path + ": is not a regular file");
  }
  errno = 0;
  if (!std::ifstream(path, std::ios::binary)) {
    throw DataError(path + ": cannot be opened for reading: " + std::strerror(errno));
  }
  const std::uintmax_t size = fs::file_size(path, error);
  if (error) {
    throw DataError(path + ": cannot be looked at: " + error.message());
  }
  if (size == 0) {
    throw DataError(path + ": the file is empty (0 bytes)");
  }
  return size;
}

std::string file_beginning(const std::string& path) {
  std::array<char, 24> bytes{};
  std::ifstream file(path, std::ios::binary);
  file.read(bytes.data(), bytes.size());
  return '"' + printable({bytes.data(), static_cast<std::size_t>(file.gcount())}) + '"';
}

std::string printable(std::string_view bytes) {
  std::string text(bytes);
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '.';
  }
  return text;
}

}  // namespace dmamba::data
