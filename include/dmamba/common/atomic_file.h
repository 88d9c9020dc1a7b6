// Files and folders that are either the old one or the new one, whatever happens in between.
#pragma once

#include <cstddef>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>

namespace dmamba {

/// Replaces the file: writes a temporary one in the same folder, fsyncs it, renames it over `path`
/// and fsyncs the folder. Where a step before the rename fails (disk full, no such folder), the
/// temporary file is removed, the old file stays as it was, and Error names path, step and cause. A
/// process killed in between leaves at most a file named .dmamba-*.tmp.
void write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

/// The same for content that lies in several pieces, written one after the other.
void write_file_atomically(const std::filesystem::path& path,
                           std::span<const std::string_view> pieces);

/// Moves the finished file `fresh` to `path`, of the same folder: fsyncs it, renames it over `path`
/// and fsyncs the folder. Throws Error with path, step and cause; `fresh` is then left where it is,
/// unless it was renamed already.
void replace_file_atomically(const std::filesystem::path& fresh, const std::filesystem::path& path);

/// Moves the finished folder `fresh` to `path`, of the same parent, and fsyncs the parent; the
/// files in it must be on the disk already. A folder that stands at `path` changes places with it
/// in one step and is removed then, under the name of `fresh`. Where the file system cannot
/// exchange names (or `can_exchange` is false) the old folder is moved to `.NAME.old` first: a
/// process killed between the two moves leaves both whole, and nothing at `path`. Throws Error with
/// path, step and cause.
void replace_folder_atomically(const std::filesystem::path& fresh,
                               const std::filesystem::path& path, bool can_exchange = true);

/// The whole content of a file. Throws Error with path and cause, also where it is longer than
/// `max_bytes`.
std::string read_file(const std::filesystem::path& path,
                      std::size_t max_bytes = std::numeric_limits<std::size_t>::max());

}  // namespace dmamba
