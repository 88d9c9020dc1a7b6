// How much memory transitions may take: what Linux says is left of the machine's and of the control
// group's (cgroup v2: a container, a job of Slurm).
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

#include "data/disk_store.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max();

// The number that a text begins with; kUnknown where it begins with none, such as "max".
std::uint64_t number(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  std::uint64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return result.ec == std::errc() ? value : kUnknown;
}

// The rest of the line of `path` that begins with `key`.
std::string line_after(const std::filesystem::path& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return line.substr(key.size());
  }
  return {};
}

std::uint64_t machine_bytes() {
  const std::uint64_t kilobytes = number(line_after("/proc/meminfo", "MemAvailable:"));
  return kilobytes == kUnknown ? kUnknown : kilobytes * 1024;
}

// The smallest limit of the group and of those that it lies in.
std::uint64_t group_bytes() {
  const std::string group = line_after("/proc/self/cgroup", "0::");
  std::uint64_t least = kUnknown;
  if (group.empty()) return least;
  const std::filesystem::path root = "/sys/fs/cgroup";
  for (std::filesystem::path folder = root / group.substr(1);; folder = folder.parent_path()) {
    least = std::min(least, number(line_after(folder / "memory.max", "")));
    if (folder == root || folder == folder.root_path()) return least;
  }
}

}  // namespace

std::uint64_t free_memory() { return std::min(machine_bytes(), group_bytes()); }

void require_kind(const Storage& storage) {
  if (storage.kind == "memory" || storage.kind == "disk" || storage.kind == "auto") return;
  throw ConfigError("storage must be one of auto, memory, disk, got '" + storage.kind + "'");
}

std::uint64_t memory_limit(const Storage& storage) {
  require_kind(storage);
  if (storage.kind == "memory") return kUnknown;
  if (storage.kind == "disk") return 0;
  if (storage.memory_limit > 0) return storage.memory_limit;
  const std::uint64_t left = free_memory();
  return left == kUnknown ? kUnknown : left / 2;
}

}  // namespace dmamba::data
