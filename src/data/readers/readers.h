// What a dataset format provides, and what all formats share. A new format declares its two
// functions here and gets a row in the table of reader.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "dmamba/data/reader.h"

namespace dmamba::data {

/// open_dataset in this very process, without the check of file_check.h.
std::shared_ptr<TrajectoryStore> open_dataset_here(const std::string& path,
                                                   const std::string& format,
                                                   const Storage& storage);

/// True if the file at `path` has the signature of an HDF5 file; false also for what cannot be
/// read. The HDF5 library is not asked.
bool is_hdf5(const std::string& path);

/// Reads a file of the D4RL HDF5 layout; see open_dataset.
std::shared_ptr<TrajectoryStore> open_d4rl(const std::string& path, const Storage& storage);

/// True if the file at `path` is an HDF5 file with a group episode_0; false also for what cannot be
/// read.
bool looks_like_minari(const std::string& path);

/// open_minari without the check of file_check.h.
std::shared_ptr<TrajectoryStore> open_minari_here(const std::string& path, Metadata metadata,
                                                  const Storage& storage);

/// The same without further metadata.
std::shared_ptr<TrajectoryStore> open_minari_file(const std::string& path, const Storage& storage);

/// Returns the size in bytes of the regular file at `path`. Throws DataError if it is missing, a
/// directory or another thing that is not a file, empty, or may not be read.
std::uint64_t require_readable_file(const std::string& path);

/// The printable beginning of a file, in quotes, for messages about unexpected content.
std::string file_beginning(const std::string& path);

/// Bytes of a file as a message can hold them: what is not printable ASCII becomes a dot.
std::string printable(std::string_view bytes);

}  // namespace dmamba::data
