// yaml-cpp -> Document. The only file that includes yaml-cpp.
#include "config/document.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "dmamba/common/error.h"

namespace dmamba::config {
namespace {

constexpr std::size_t kMaxDepth = 16;
constexpr int kMaxNodes = 20000;

/// Builds a document from the parser's events. yaml-cpp's own builder has no bounds, and its parser
/// goes on for ever over some texts, such as a list that is never closed.
class Builder final : public YAML::EventHandler {
 public:
  explicit Builder(const Source& source) : source_(source) {}

  /// The documents that were seen.
  std::vector<Document>& documents() { return documents_; }

  void OnDocumentStart(const YAML::Mark&) override { finished_.clear(); }
  void OnDocumentEnd() override {
    if (!rooted_) documents_.emplace_back();
    rooted_ = false;
  }

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(make(Document::Kind::kNull, mark), anchor);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    Document document = make(Document::Kind::kScalar, mark, tag);
    document.text = value;
    document.quoted = tag == "!";
    add(std::move(document), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = finished_.find(anchor);
    if (found == finished_.end()) fail(line_of(mark), "an alias stands inside what it names");
    count(found->second, line_of(mark));
    add(found->second, YAML::NullAnchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(make(Document::Kind::kList, mark, tag), anchor);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(make(Document::Kind::kMap, mark, tag), anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

 private:
  /// A list or map that is not at its end; a map may have a key that waits for its value.
  struct Open {
    Document document;
    YAML::anchor_t anchor;
    std::optional<Document> key;
  };

  static int line_of(const YAML::Mark& mark) { return mark.line + 1; }

  [[noreturn]] void fail(int line, const std::string& what) const {
    throw ConfigError(source_.at(line) + what);
  }

  void count_one(int line) {
    if (open_.size() > kMaxDepth || ++nodes_ > kMaxNodes) {
      fail(line, "nested too deep or too large for a configuration");
    }
  }

  void count(const Document& document, int line) {
    count_one(line);
    for (const Document& item : document.items) count(item, line);
    for (const auto& entry : document.entries) count(entry.value, line);
  }

  Document make(Document::Kind kind, const YAML::Mark& mark, const std::string& tag = "") {
    Document document;
    document.kind = kind;
    document.line = line_of(mark);
    count_one(document.line);
    if (!tag.empty() && tag != "?" && tag != "!") {
      fail(document.line, "tag '" + tag + "' is not supported; leave it out");
    }
    return document;
  }

  void open(Document document, YAML::anchor_t anchor) {
    open_.push_back({std::move(document), anchor, std::nullopt});
  }

  void close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    add(std::move(done.document), done.anchor);
  }

  void add(Document document, YAML::anchor_t anchor) {
    if (anchor != YAML::NullAnchor) finished_[anchor] = document;
    if (open_.empty()) {
      documents_.push_back(std::move(document));
      rooted_ = true;
      return;
    }
    Open& parent = open_.back();
    if (parent.document.kind == Document::Kind::kList) {
      parent.document.items.push_back(std::move(document));
    } else if (!parent.key) {
      if (document.kind != Document::Kind::kScalar) {
        fail(document.line, "a key must be a word, got " + describe(document));
      }
      parent.key = std::move(document);
    } else {
      parent.document.entries.push_back({parent.key->text, parent.key->line, std::move(document)});
      parent.key.reset();
    }
  }

  const Source& source_;
  std::vector<Document> documents_;
  std::vector<Open> open_;
  std::map<YAML::anchor_t, Document> finished_;
  bool rooted_ = false;
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
  Builder builder(source);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
    std::vector<Document>& documents = builder.documents();
    if (documents.empty()) return {};
    if (documents.size() > 1) {
      throw ConfigError(source.at(0) + "holds " + std::to_string(documents.size()) +
                        " YAML documents, expected one; remove the lines '---'");
    }
    return std::move(documents.front());
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
