// yaml-cpp -> Document. The only file that includes yaml-cpp.
#include "config/document.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <utility>

#include "dmamba/common/error.h"

namespace dmamba::config {
namespace {

constexpr int kMaxDepth = 16;
constexpr int kMaxNodes = 20000;

class Converter {
 public:
  explicit Converter(const Source& source) : source_(source) {}

  Document convert(const YAML::Node& node, int depth) {
    Document document;
    document.line = node.Mark().line + 1;
    // Both bounds also end aliases that contain themselves or multiply.
    if (depth > kMaxDepth || ++nodes_ > kMaxNodes) {
      fail(document.line, "nested too deep or too large for a configuration");
    }
    const std::string& tag = node.Tag();
    if (!tag.empty() && tag != "?" && tag != "!") {
      fail(document.line, "tag '" + tag + "' is not supported; leave it out");
    }
    if (node.IsScalar()) {
      document.kind = Document::Kind::kScalar;
      document.text = node.Scalar();
      document.quoted = tag == "!";
    } else if (node.IsSequence()) {
      document.kind = Document::Kind::kList;
      for (const auto& item : node) document.items.push_back(convert(item, depth + 1));
    } else if (node.IsMap()) {
      document.kind = Document::Kind::kMap;
      for (const auto& pair : node) {
        const Document key = convert(pair.first, depth + 1);
        if (key.kind != Document::Kind::kScalar) {
          fail(key.line, "a key must be a word, got " + describe(key));
        }
        document.entries.push_back({key.text, key.line, convert(pair.second, depth + 1)});
      }
    }
    return document;
  }

 private:
  [[noreturn]] void fail(int line, const std::string& what) const {
    throw ConfigError(source_.at(line) + what);
  }

  const Source& source_;
  int nodes_ = 0;
};

int line_of(std::string_view text, std::size_t position) {
  return 1 + static_cast<int>(std::count(text.begin(), text.begin() + position, '\n'));
}

void check_characters(std::string_view text, const Source& source) {
  if (text.size() > kMaxTextBytes) {
    throw ConfigError(source.at(0) + "longer than " + std::to_string(kMaxTextBytes) +
                      " bytes, too large for a configuration");
  }
  if (const std::size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    throw ConfigError(source.at(line_of(text, bad)) + "byte " + std::to_string(bad + 1) +
                      " is not UTF-8 text");
  }
  // yaml-cpp takes some of these for the end of the file and would drop the rest.
  const auto control = std::find_if(text.begin(), text.end(), [](unsigned char c) {
    return c < 0x20 && c != '\n' && c != '\r' && c != '\t';
  });
  if (control != text.end()) {
    const auto position = static_cast<std::size_t>(control - text.begin());
    throw ConfigError(source.at(line_of(text, position)) + "byte " + std::to_string(position + 1) +
                      " is a control character, which YAML does not allow");
  }
}

/// Length of the UTF-8 sequence at the start of `text`, 0 where it is none. Excludes overlong
/// forms, surrogates and what lies beyond U+10FFFF.
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  const std::size_t length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  if (text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const unsigned char second = byte(1);
  const bool excluded = (first == 0xe0 && second < 0xa0) || (first == 0xed && second >= 0xa0) ||
                        (first == 0xf0 && second < 0x90) || (first == 0xf4 && second >= 0x90);
  return excluded ? 0 : length;
}

}  // namespace

std::string Source::at(int line) const {
  return has_lines && line > 0 ? name + ":" + std::to_string(line) + ": " : name + ": ";
}

std::string describe(const Document& document) {
  switch (document.kind) {
    case Document::Kind::kNull:
      return "nothing";
    case Document::Kind::kScalar:
      return document.quoted ? "the string \"" + document.text + "\"" : "'" + document.text + "'";
    case Document::Kind::kList:
      return "a list";
    case Document::Kind::kMap:
      return "a map";
  }
  return "an unknown node";
}

Document parse_document(std::string_view text, const Source& source) {
  check_characters(text, source);
  std::vector<YAML::Node> documents;
  try {
    documents = YAML::LoadAll(std::string(text));
    if (documents.empty()) return {};
    if (documents.size() > 1) {
      throw ConfigError(source.at(0) + "holds " + std::to_string(documents.size()) +
                        " YAML documents, expected one; remove the lines '---'");
    }
    return Converter(source).convert(documents.front(), 0);
  } catch (const YAML::Exception& error) {
    const int line = error.mark.is_null() ? 0 : error.mark.line + 1;
    throw ConfigError(source.at(line) + "not valid YAML: " + error.msg);
  }
}

std::size_t find_invalid_utf8(std::string_view text) {
  std::size_t position = 0;
  while (position < text.size()) {
    const std::size_t length = sequence_length(text.substr(position));
    if (length == 0) return position;
    position += length;
  }
  return std::string_view::npos;
}

}  // namespace dmamba::config
