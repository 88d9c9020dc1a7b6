// See keys.h.
#include "config/keys.h"

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <utility>

#include "dmamba/common/error.h"
#include "dmamba/config/fields.h"

namespace dmamba::config {
namespace {

template <class Struct>
void append_keys(const std::string& prefix, std::vector<std::string>& keys) {
  for_each_field(
      [&](const char* name, auto member, const char*) {
        using Value = std::remove_cvref_t<decltype(std::declval<Struct>().*member)>;
        if constexpr (kIsSection<Value>) {
          append_keys<Value>(prefix + name + ".", keys);
        } else {
          keys.push_back(prefix + name);
        }
      },
      Tag<Struct>{});
}

constexpr std::size_t kLongestKey = 200;

std::string_view leaf_of(std::string_view key) { return key.substr(key.rfind('.') + 1); }

std::string_view section_of(std::string_view key) {
  const std::size_t dot = key.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : key.substr(0, dot);
}

/// Levenshtein's distance.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, replaced});
    }
  }
  return row.back();
}

/// How far `candidate` is from `key`; a right name in a wrong section counts as one slip.
std::size_t distance(std::string_view key, std::string_view candidate) {
  const std::size_t elsewhere = section_of(key) == section_of(candidate) ? 0 : 1;
  return std::min(edit_distance(key, candidate),
                  edit_distance(leaf_of(key), leaf_of(candidate)) + elsewhere);
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

/// The keys of `section` itself, one level of it.
std::vector<std::string> members_of(std::string_view section,
                                    const std::vector<std::string>& keys) {
  const std::string prefix = section.empty() ? "" : std::string(section) + ".";
  std::vector<std::string> members;
  for (const std::string& key : keys) {
    if (!key.starts_with(prefix)) continue;
    std::string member = key.substr(0, key.find('.', prefix.size()));
    if (std::find(members.begin(), members.end(), member) == members.end()) {
      members.push_back(std::move(member));
    }
  }
  return members;
}

}  // namespace

const std::vector<std::string>& all_keys() {
  static const std::vector<std::string> keys = [] {
    std::vector<std::string> list;
    append_keys<Config>("", list);
    return list;
  }();
  return keys;
}

std::string explain_unknown(std::string_view key, const std::vector<std::string>& keys) {
  std::vector<std::string> candidates = members_of("", keys);
  candidates.insert(candidates.end(), keys.begin(), keys.end());
  const std::string* best = nullptr;
  std::size_t best_distance = std::max<std::size_t>(2, leaf_of(key).size() / 3) + 1;
  // A name of one or two letters is within two slips of anything.
  if (leaf_of(key).size() < 3) best_distance = 2;
  // Seconds would go by over a key as long as a text may be.
  if (key.size() > kLongestKey) candidates.clear();
  for (const std::string& candidate : candidates) {
    const std::size_t candidate_distance = distance(key, candidate);
    if (candidate_distance < best_distance) {
      best = &candidate;
      best_distance = candidate_distance;
    }
  }
  if (best != nullptr) return "unknown; did you mean '" + *best + "'?";
  std::vector<std::string> allowed = members_of(section_of(key), keys);
  if (allowed.empty()) allowed = members_of("", keys);
  return "unknown; allowed: " + join(allowed);
}

std::string resolve_key(std::string_view name, const std::vector<std::string>& keys) {
  const std::string quoted = "key '" + std::string(name) + "': ";
  if (std::find(keys.begin(), keys.end(), name) != keys.end()) return std::string(name);
  std::vector<std::string> matches;
  for (const std::string& key : keys) {
    if (leaf_of(key) == name) matches.push_back(key);
  }
  if (matches.size() == 1) return matches.front();
  if (matches.size() > 1) throw ConfigError(quoted + "ambiguous; use one of " + join(matches));
  const std::vector<std::string> members = members_of(name, keys);
  if (!name.empty() && !members.empty()) {
    throw ConfigError(quoted + "is a section; set its keys: " + join(members));
  }
  throw ConfigError(quoted + explain_unknown(name, keys));
}

}  // namespace dmamba::config
