// YAML <-> Config, strictly: an unknown or repeated key, a wrong type, or a value out of range is a
// ConfigError whose message gives file, line and dotted key. What a file leaves out keeps its
// default.
//
//   Config config = load_config("configs/experiment/hopper-sample.yaml");
//   apply_overrides(config, {"steps=2000", "evaluation.targets=[1800,3600]"});
//   write_file_atomically(run / "config.yaml", to_yaml(config));
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "dmamba/config/config.h"

namespace dmamba::config {

/// Reads and validates a file. Its key `base: other` loads other.yaml of the same folder (or of one
/// below it) first, and the file's own keys override that. Throws ConfigError.
Config load_config(const std::filesystem::path& path);

/// Reads and validates a text; `source_name` stands for the file in messages. `base` is not
/// allowed, a text has no folder. Throws ConfigError.
Config parse_config(std::string_view text, const std::string& source_name);

/// Applies "key=value" overrides in order, all or (on ConfigError) none, and validates the result.
/// A key is dotted (`training.steps`), or a field's bare name where only one section has it; the
/// value is read as YAML, so `[1800,3600]` is a list.
void apply_overrides(Config& config, const std::vector<std::string>& overrides);

/// Writes every field, doubles in the shortest form that reads back to the same bits:
/// parse_config(to_yaml(c), "...") == c for each valid c. `with_docs` puts each field's meaning in
/// a comment above it. Throws ConfigError for a string that is not UTF-8.
std::string to_yaml(const Config& config, bool with_docs = false);

/// A key whose values differ between two configs; the values as YAML.
struct Difference {
  std::string key, left, right;
};

/// All keys in which two configs differ, dotted, in the order in which they are written.
std::vector<Difference> differences(const Config& left, const Config& right);

}  // namespace dmamba::config
