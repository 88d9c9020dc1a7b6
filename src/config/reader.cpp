// Walks the table of fields and reads each value by its type. Nothing is converted: a string is no
// number, a fraction is no integer, and an empty value is neither.
#include "config/reader.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <set>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include "config/keys.h"
#include "dmamba/common/error.h"
#include "dmamba/config/fields.h"

namespace dmamba::config {
namespace {

class Reader {
 public:
  explicit Reader(const Source& source) : source_(source) {}

  template <class Struct>
  void read_section(const Document& map, const std::string& section, Struct& out) const {
    const std::string prefix = section.empty() ? "" : section + ".";
    std::set<std::string> seen;
    for (const Document::Entry& entry : map.entries) {
      const std::string key = prefix + entry.key;
      if (!seen.insert(entry.key).second) fail(entry.line, key, "given twice");
      bool known = false;
      for_each_field(
          [&](const char* name, auto member, const char*) {
            if (entry.key != name) return;
            known = true;
            read(entry.value, entry.line, key, out.*member);
          },
          Tag<Struct>{});
      if (!known) fail(entry.line, key, explain(entry.key, key));
    }
  }

 private:
  template <class Section>
    requires kIsSection<Section>
  void read(const Document& value, int line, const std::string& key, Section& out) const {
    if (value.kind != Document::Kind::kMap) {
      fail(line, key, "expected a map of keys, got " + describe(value));
    }
    read_section(value, key, out);
  }

  /// A list, or a single value that stands for a list of one.
  template <class Item>
  void read(const Document& value, int line, const std::string& key, std::vector<Item>& out) const {
    out.clear();
    if (value.kind != Document::Kind::kList) {
      read(value, line, key, out.emplace_back());
      return;
    }
    for (std::size_t i = 0; i < value.items.size(); ++i) {
      const Document& item = value.items[i];
      read(item, item.line, key + "[" + std::to_string(i) + "]", out.emplace_back());
    }
  }

  void read(const Document& value, int line, const std::string& key, std::string& out) const {
    if (value.kind == Document::Kind::kNull) {
      fail(line, key, "expected a string, got nothing; write '' for an empty one");
    }
    if (value.kind != Document::Kind::kScalar) {
      fail(line, key, "expected a string, got " + describe(value));
    }
    out = value.text;
  }

  void read(const Document& value, int line, const std::string& key, double& out) const {
    read_number(value, line, key, "a number", out);
    if (!std::isfinite(out)) {
      fail(line, key, "expected a finite number, got " + describe(value));
    }
  }

  template <std::integral Integer>
  void read(const Document& value, int line, const std::string& key, Integer& out) const {
    constexpr const char* kExpected =
        std::is_signed_v<Integer> ? "an integer" : "an integer that is not negative";
    read_number(value, line, key, kExpected, out);
  }

  template <class Number>
  void read_number(const Document& value, int line, const std::string& key,
                   const std::string& expected, Number& out) const {
    const auto reject = [&] {
      fail(line, key, "expected " + expected + ", got " + describe(value));
    };
    if (value.kind != Document::Kind::kScalar || value.quoted) reject();
    std::string_view text = value.text;
    if (text.starts_with('+')) text.remove_prefix(1);
    if (text.starts_with("+") || (text.size() < value.text.size() && text.starts_with("-"))) {
      reject();
    }
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), out);
    if (code == std::errc::result_out_of_range) {
      fail(line, key, describe(value) + " is out of the range of a 64-bit number");
    }
    if (code != std::errc() || end != text.data() + text.size()) reject();
  }

  /// Overrides are dotted, files are nested: whoever mixes them up meets no "did you mean" itself.
  static std::string explain(const std::string& name, const std::string& key) {
    const std::size_t dot = name.rfind('.');
    const auto& keys = all_keys();
    if (dot == std::string::npos || std::find(keys.begin(), keys.end(), key) == keys.end()) {
      return explain_unknown(key, keys);
    }
    return "unknown; write it as '" + name.substr(dot + 1) + "' below '" + name.substr(0, dot) +
           ":'";
  }

  [[noreturn]] void fail(int line, const std::string& key, const std::string& what) const {
    throw ConfigError(source_.at(line) + "key '" + key + "': " + what);
  }

  const Source& source_;
};

}  // namespace

void read_into(Config& config, const Document& document, const Source& source) {
  if (document.kind == Document::Kind::kNull) {
    throw ConfigError(source.at(0) + "is empty, expected a map of keys");
  }
  if (document.kind != Document::Kind::kMap) {
    throw ConfigError(source.at(document.line) + "expected a map of keys, got " +
                      describe(document));
  }
  Reader(source).read_section(document, "", config);
}

}  // namespace dmamba::config
