// What the header claims is held against what the file can hold, before anything is allocated.
#include "data/readers/npy_stream.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "data/readers/npy_header.h"
#include "data/readers/readers.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

constexpr std::int64_t kLongestHeader = 10000;  // NumPy's own limit
constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::int64_t kSkipBlock = std::int64_t{1} << 18;

std::string shape_of(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += (i == 0 ? "" : i + 1 < names.size() ? ", " : " or ") + names[i];
  }
  return text;
}

}  // namespace

std::string NpyHeader::shape_text() const { return shape_of(shape); }

NpyStream::NpyStream(const std::string& path, const std::vector<std::string>& dtypes,
                     const std::vector<std::int64_t>& row_shape, GzipStream::OnRead on_read)
    : stream_(path, std::move(on_read)), header_(read_header()) {
  check_claim(dtypes, row_shape);
}

void NpyStream::require_bytes(void* out, std::int64_t bytes, const char* what) {
  if (stream_.read(out, bytes) == bytes) return;
  const std::string& problem = stream_.problem();
  throw DataError(stream_.path() + ": " + (problem.empty() ? "the data end" : problem) +
                  " within " + what + "; download or write it again");
}

NpyHeader NpyStream::read_header() {
  const std::string& path = stream_.path();
  std::array<std::uint8_t, 8> start{};
  require_bytes(start.data(), start.size(), "the .npy magic");
  const int version = start[6];
  if (std::memcmp(start.data(), kMagic.data(), kMagic.size()) != 0) {
    throw DataError(path + ": what is compressed in it is no .npy array (its magic is missing)");
  }
  if (version < 1 || version > 3 || start[7] != 0) {
    throw DataError(path + ": .npy version " + std::to_string(version) + "." +
                    std::to_string(start[7]) + " is not known; it must be 1.0, 2.0 or 3.0");
  }
  std::array<std::uint8_t, 4> bytes{};
  require_bytes(bytes.data(), version == 1 ? 2 : 4, "the .npy header");
  const std::int64_t length = bytes[0] | std::int64_t{bytes[1]} << 8 |
                              std::int64_t{bytes[2]} << 16 | std::int64_t{bytes[3]} << 24;
  if (length > kLongestHeader) {
    throw DataError(path + ": the .npy header claims " + std::to_string(length) +
                    " bytes, more than the " + std::to_string(kLongestHeader) + " of any; damaged");
  }
  std::string text(length, '\0');
  require_bytes(text.data(), length, "the .npy header");
  std::string reason;
  auto header = parse_npy_header(text, &reason);
  if (!header) {
    throw DataError(path + ": the .npy header cannot be used: " + reason);
  }
  return std::move(*header);
}

void NpyStream::check_claim(const std::vector<std::string>& dtypes,
                            const std::vector<std::int64_t>& row_shape) {
  const std::string& path = stream_.path();
  if (std::find(dtypes.begin(), dtypes.end(), header_.dtype) == dtypes.end()) {
    throw DataError(path + ": dtype '" + printable(header_.dtype) + "', but must be " +
                    join(dtypes));
  }
  if (header_.shape.empty() || !std::equal(header_.shape.begin() + 1, header_.shape.end(),
                                           row_shape.begin(), row_shape.end())) {
    const std::string wanted = shape_of(row_shape);
    throw DataError(path + ": shape " + header_.shape_text() + ", but must be (rows" +
                    (row_shape.empty() ? ",)" : ", " + wanted.substr(1)));
  }
  row_bytes_ = header_.dtype.back() - '0';
  for (const std::int64_t extent : row_shape) row_bytes_ *= extent;
  if (rows() > stream_.file_size() * kMostDeflate / row_bytes_) {
    throw DataError(path + ": the header claims " + std::to_string(rows()) + " rows of " +
                    std::to_string(row_bytes_) + " bytes, but " +
                    std::to_string(stream_.file_size()) +
                    " compressed bytes cannot hold as many; the file is truncated or damaged");
  }
}

void NpyStream::read(void* out, std::int64_t count) {
  const std::int64_t bytes = count * row_bytes_;
  const std::int64_t got = rows_read_ + count > rows() ? 0 : stream_.read(out, bytes);
  rows_read_ += got / row_bytes_;
  if (got < bytes) {
    const std::string& problem = stream_.problem();
    throw DataError(stream_.path() + ": " + (problem.empty() ? "the data end early" : problem) +
                    ": it has " + std::to_string(rows_read_) + " of " + std::to_string(rows()) +
                    " rows; download or write it again");
  }
}

void NpyStream::skip(std::int64_t count) {
  const std::int64_t block = std::max<std::int64_t>(1, kSkipBlock / row_bytes_);
  std::vector<std::uint8_t> scratch(std::min(block, count) * row_bytes_);
  for (std::int64_t done = 0; done < count; done += block) {
    read(scratch.data(), std::min(block, count - done));
  }
}

void NpyStream::finish() {
  std::uint8_t byte = 0;
  if (stream_.read(&byte, 1) == 1) {
    throw DataError(stream_.path() + ": more data follow the " + std::to_string(rows()) +
                    " rows that the header says; download or write it again");
  }
  if (!stream_.problem().empty()) {
    throw DataError(stream_.path() + ": " + stream_.problem() + " after all of its " +
                    std::to_string(rows()) + " rows; download or write it again");
  }
}

}  // namespace dmamba::data
