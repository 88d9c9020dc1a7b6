// A parser of exactly what NumPy writes.
#include "data/readers/npy_header.h"

#include <charconv>
#include <utility>

#include "data/readers/readers.h"

namespace dmamba::data {
namespace {

class Parser {
 public:
  Parser(std::string_view text, std::string* reason) : rest_(text), reason_(reason) {}

  bool parse(NpyHeader* header) {
    if (!expect('{')) return false;
    while (!accept('}')) {
      std::string key;
      if (!string(&key) || !expect(':') || !value(key)) return false;
      if (!accept(',') && !peek('}')) return fail("',' or '}' is missing");
    }
    skip_space();
    if (!rest_.empty()) return fail("text follows the '}'");
    if (!dtype_ || !order_ || !shape_) {
      return fail("'descr', 'fortran_order' or 'shape' is missing");
    }
    *header = {.dtype = std::move(*dtype_), .shape = std::move(*shape_)};
    return true;
  }

 private:
  bool fail(const std::string& reason) {
    if (reason_->empty()) *reason_ = reason;
    return false;
  }

  void skip_space() {
    const auto end = rest_.find_first_not_of(" \n");
    rest_.remove_prefix(end == std::string_view::npos ? rest_.size() : end);
  }

  bool peek(char c) {
    skip_space();
    return !rest_.empty() && rest_.front() == c;
  }

  bool accept(char c) {
    if (!peek(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }

  bool expect(char c) { return accept(c) || fail(std::string("'") + c + "' is missing"); }

  bool string(std::string* text) {
    if (!expect('\'')) return false;
    const auto end = rest_.find('\'');
    if (end == std::string_view::npos) return fail("a string does not end");
    *text = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return true;
  }

  bool word(std::string_view expected) {
    skip_space();
    if (!rest_.starts_with(expected)) return false;
    rest_.remove_prefix(expected.size());
    return true;
  }

  bool tuple(std::vector<std::int64_t>* values) {
    if (!expect('(')) return false;
    while (!accept(')')) {
      skip_space();
      std::int64_t number = 0;
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), number);
      if (error != std::errc() || number < 0) return fail("the shape is not of whole numbers");
      rest_.remove_prefix(end - rest_.data());
      values->push_back(number);
      if (!accept(',') && !peek(')')) return fail("the shape's ')' is missing");
    }
    return true;
  }

  bool value(const std::string& key) {
    if (key == "descr" && !dtype_) {
      // A structured dtype is a list, which no field here has.
      return string(&dtype_.emplace());
    }
    if (key == "fortran_order" && !order_) {
      order_ = true;
      if (word("False")) return true;
      return fail(word("True") ? "the array is in Fortran order; save it in C order"
                               : "'fortran_order' is neither True nor False");
    }
    if (key == "shape" && !shape_) {
      return tuple(&shape_.emplace());
    }
    return fail("key '" + printable(key) + "' is unknown or repeated");
  }

  std::string_view rest_;
  std::string* reason_;
  std::optional<std::string> dtype_;
  std::optional<bool> order_;
  std::optional<std::vector<std::int64_t>> shape_;
};

}  // namespace

std::optional<NpyHeader> parse_npy_header(std::string_view text, std::string* reason) {
  NpyHeader header;
  return Parser(text, reason).parse(&header) ? std::optional(std::move(header)) : std::nullopt;
}

}  // namespace dmamba::data
