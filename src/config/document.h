// A parsed YAML text as a small tree of our own: yaml-cpp stays in document.cpp, aliases are
// expanded within bounds, and every node knows its line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dmamba::config {

/// Where a text comes from, for messages: "file:line: " or, for one-line texts, "name: ".
struct Source {
  std::string name;
  bool has_lines = true;

  std::string at(int line) const;
};

/// Texts longer than this are no configuration.
inline constexpr std::size_t kMaxTextBytes = 256 * 1024;

struct Document {
  enum class Kind { kNull, kScalar, kList, kMap };
  struct Entry;

  Kind kind = Kind::kNull;
  int line = 0;         // from 1
  bool quoted = false;  // a scalar in quotes: a string, whatever it looks like
  std::string text;     // of a scalar
  std::vector<Document> items;
  std::vector<Entry> entries;  // of a map, in the text's order; keys may repeat
};

struct Document::Entry {
  std::string key;
  int line = 0;
  Document value;
};

/// "a list", "'12'", ...: what a node is, for messages.
std::string describe(const Document& document);

/// Parses a text that holds exactly one YAML document. Throws ConfigError for broken YAML, text
/// that is not UTF-8, tags, nesting or aliases out of all proportion.
Document parse_document(std::string_view text, const Source& source);

/// The position of the first byte that is not part of valid UTF-8, or npos.
std::size_t find_invalid_utf8(std::string_view text);

}  // namespace dmamba::config
