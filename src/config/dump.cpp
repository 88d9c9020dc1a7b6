// Config -> YAML, and what tells two configs apart. Written by hand: yaml-cpp's emitter rounds
// doubles.
#include <array>
#include <charconv>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "config/document.h"
#include "config/format.h"
#include "dmamba/common/error.h"
#include "dmamba/config/fields.h"
#include "dmamba/config/yaml.h"

namespace dmamba::config {
namespace {

template <class Number>
std::string to_text(Number value) {
  std::array<char, 32> buffer{};
  const auto [end, code] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return {buffer.data(), end};
}

/// Whether any YAML reader takes the word for a string without quotes.
bool is_plain(std::string_view text) {
  constexpr std::array<std::string_view, 9> kSpecial{"null", "true", "false", "yes", "no",
                                                     "on",   "off",  "y",     "n"};
  if (text.empty()) return false;
  std::string lower;
  for (const char c : text) {
    const bool upper = c >= 'A' && c <= 'Z';
    const bool letter = upper || (c >= 'a' && c <= 'z') || c == '_' || c == '/';
    const bool other = (c >= '0' && c <= '9') || c == '-' || c == '.';
    if (!letter && (!other || lower.empty())) return false;
    lower += upper ? static_cast<char>(c - 'A' + 'a') : c;
  }
  for (const std::string_view special : kSpecial) {
    if (lower == special) return false;
  }
  return true;
}

std::string format(const std::string& value, const std::string& key) {
  if (is_plain(value)) return value;
  if (find_invalid_utf8(value) != std::string_view::npos) {
    throw ConfigError("key '" + key + "': is not UTF-8 and cannot be written as YAML");
  }
  constexpr const char* kHex = "0123456789abcdef";
  std::string text = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      text += "\\x";
      text += kHex[byte >> 4];
      text += kHex[byte & 0xf];
    } else {
      if (c == '"' || c == '\\') text += '\\';
      text += c;
    }
  }
  return text + '"';
}

template <class Number>
  requires std::is_arithmetic_v<Number>
std::string format(Number value, const std::string&) {
  return format_number(value);
}

template <class Item>
std::string format(const std::vector<Item>& values, const std::string& key) {
  std::string text = "[";
  for (const Item& value : values) text += (text.size() == 1 ? "" : ", ") + format(value, key);
  return text + "]";
}

template <class Struct>
void write(const Struct& in, const std::string& section, const std::string& indent, bool with_docs,
           std::string& out) {
  for_each_field(
      [&](const char* name, auto member, const char* doc) {
        const std::string key = section.empty() ? name : section + "." + name;
        if (with_docs) out += indent + "# " + doc + "\n";
        using Value = std::remove_cvref_t<decltype(in.*member)>;
        if constexpr (kIsSection<Value>) {
          out += indent + name + ":\n";
          write(in.*member, key, indent + "  ", with_docs, out);
        } else {
          out += indent + name + ": " + format(in.*member, key) + "\n";
        }
      },
      Tag<Struct>{});
}

template <class Struct>
void compare(const Struct& left, const Struct& right, const std::string& section,
             std::vector<Difference>& out) {
  for_each_field(
      [&](const char* name, auto member, const char*) {
        const std::string key = section.empty() ? name : section + "." + name;
        using Value = std::remove_cvref_t<decltype(left.*member)>;
        if constexpr (kIsSection<Value>) {
          compare(left.*member, right.*member, key, out);
        } else if (left.*member != right.*member) {
          out.push_back({key, format(left.*member, key), format(right.*member, key)});
        }
      },
      Tag<Struct>{});
}

}  // namespace

std::string format_number(double value) { return to_text(value); }
std::string format_number(std::int64_t value) { return to_text(value); }
std::string format_number(std::uint64_t value) { return to_text(value); }

std::string to_yaml(const Config& config, bool with_docs) {
  std::string text;
  write(config, "", "", with_docs, text);
  return text;
}

std::vector<Difference> differences(const Config& left, const Config& right) {
  std::vector<Difference> found;
  compare(left, right, "", found);
  return found;
}

}  // namespace dmamba::config
