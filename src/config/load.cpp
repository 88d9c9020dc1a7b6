// Files, texts and command-line overrides -> Config.
#include <algorithm>
#include <iterator>
#include <utility>

#include "config/document.h"
#include "config/keys.h"
#include "config/reader.h"
#include "dmamba/common/atomic_file.h"
#include "dmamba/common/error.h"
#include "dmamba/config/yaml.h"

namespace dmamba::config {
namespace {

namespace fs = std::filesystem;

constexpr const char* kBaseKey = "base";

void validate_from(const Config& config, const std::string& name) {
  try {
    validate(config);
  } catch (const ConfigError& error) {
    throw ConfigError(name + ": " + error.what());
  }
}

/// Takes the entries `base` out of the map and returns them.
std::vector<Document::Entry> take_bases(Document& document) {
  auto& entries = document.entries;
  const auto rest = std::stable_partition(entries.begin(), entries.end(),
                                          [](const auto& entry) { return entry.key != kBaseKey; });
  std::vector<Document::Entry> bases(std::make_move_iterator(rest),
                                     std::make_move_iterator(entries.end()));
  entries.erase(rest, entries.end());
  return bases;
}

/// The file that `base: value` means in a file of `folder`: below that folder, never outside it.
fs::path base_path(const Document::Entry& base, const fs::path& folder, const Source& source) {
  const auto fail = [&](const std::string& what) {
    throw ConfigError(source.at(base.line) + "key 'base': " + what);
  };
  if (base.value.kind != Document::Kind::kScalar || base.value.text.empty()) {
    fail("expected the name of a configuration, got " + describe(base.value));
  }
  fs::path name = base.value.text;
  const bool climbs =
      std::any_of(name.begin(), name.end(), [](const fs::path& part) { return part == ".."; });
  if (name.is_absolute() || climbs) {
    fail("'" + base.value.text + "' is outside the folder of this file; name one in it");
  }
  if (name.extension() != ".yaml" && name.extension() != ".yml") name += ".yaml";
  return folder / name;
}

/// `chain`: the files being read, from the first to the one whose base this is.
void load_into(Config& config, const fs::path& path, std::vector<fs::path>& chain) {
  const Source source{path.string()};
  std::string text;
  try {
    text = read_file(path, kMaxTextBytes);
  } catch (const Error& error) {
    throw ConfigError(error.what());
  }
  Document document = parse_document(text, source);
  const std::vector<Document::Entry> bases = take_bases(document);
  if (bases.size() > 1) throw ConfigError(source.at(bases[1].line) + "key 'base': given twice");
  chain.push_back(fs::weakly_canonical(path));
  if (!bases.empty()) {
    const fs::path base = base_path(bases[0], path.parent_path(), source);
    const std::string where = source.at(bases[0].line) + "key 'base': ";
    if (std::find(chain.begin(), chain.end(), fs::weakly_canonical(base)) != chain.end()) {
      throw ConfigError(where + "'" + bases[0].value.text + "' leads back to itself");
    }
    if (!fs::is_regular_file(base)) throw ConfigError(where + "no file '" + base.string() + "'");
    load_into(config, base, chain);
  }
  // A file that only names its base is whole.
  if (document.kind == Document::Kind::kMap || bases.empty()) read_into(config, document, source);
}

void apply_override(Config& config, const std::string& text) {
  const Source source{"override '" + text + "'", false};
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw ConfigError(source.at(0) + "expected key=value, such as training.steps=2000");
  }
  std::string key;
  try {
    key = resolve_key(text.substr(0, equals), all_keys());
  } catch (const ConfigError& error) {
    throw ConfigError(source.at(0) + error.what());
  }
  Document value = parse_document(std::string_view(text).substr(equals + 1), source);
  // The override as the file that it stands for, from the innermost part of the key outwards.
  while (!key.empty()) {
    const std::size_t dot = key.rfind('.');
    Document map;
    map.kind = Document::Kind::kMap;
    map.entries.push_back(
        {key.substr(dot == std::string::npos ? 0 : dot + 1), 0, std::move(value)});
    value = std::move(map);
    key.resize(dot == std::string::npos ? 0 : dot);
  }
  read_into(config, value, source);
}

}  // namespace

Config load_config(const fs::path& path) {
  Config config;
  std::vector<fs::path> chain;
  load_into(config, path, chain);
  validate_from(config, path.string());
  return config;
}

Config parse_config(std::string_view text, const std::string& source_name) {
  const Source source{source_name};
  Config config;
  Document document = parse_document(text, source);
  const std::vector<Document::Entry> bases = take_bases(document);
  if (!bases.empty()) {
    throw ConfigError(source.at(bases[0].line) +
                      "key 'base': only a file has one; this text lies in no folder");
  }
  read_into(config, document, source);
  validate_from(config, source_name);
  return config;
}

void apply_overrides(Config& config, const std::vector<std::string>& overrides) {
  Config changed = config;
  for (const std::string& text : overrides) apply_override(changed, text);
  validate_from(changed, "after the overrides");
  config = std::move(changed);
}

}  // namespace dmamba::config
