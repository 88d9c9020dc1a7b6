// Reads and writes safetensors. A file comes from anywhere: nothing in it is used before it is
// checked against the file's true size.
#include "dmamba/train/safetensors.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <system_error>
#include <utility>

#include "dmamba/common/atomic_file.h"
#include "dmamba/common/error.h"
#include "src/train/checksum.h"

namespace dmamba::train {
namespace {

using nlohmann::json;

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the bound of the format's own library
constexpr const char* kMetadataKey = "__metadata__";
constexpr const char* kChecksumKey =
    "dmamba.crc32";  // of the header without metadata, and the data

struct DtypeInfo {
  const char* name;
  std::size_t size;
};
constexpr std::array<DtypeInfo, 8> kDtypes{{{"F64", 8},
                                            {"I64", 8},
                                            {"F32", 4},
                                            {"I32", 4},
                                            {"F16", 2},
                                            {"BF16", 2},
                                            {"U8", 1},
                                            {"BOOL", 1}}};

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw CheckpointError("'" + path.string() + "': " + what);
}

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& tensor,
                       const std::string& what) {
  fail(path, "tensor '" + tensor + "': " + what);
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

/// Bytes of one element.
std::size_t element_size(const std::filesystem::path& path, const TensorBlob& tensor) {
  for (const DtypeInfo& dtype : kDtypes) {
    if (tensor.dtype == dtype.name) return dtype.size;
  }
  fail(path, tensor.name,
       "dtype '" + tensor.dtype +
           "' is not supported; allowed: F64, F32, F16, BF16, I64, I32, U8, BOOL");
}

/// Throws unless shape times dtype, computed without overflow, is the number of bytes.
void check_size(const std::filesystem::path& path, const TensorBlob& tensor) {
  std::uint64_t expected = element_size(path, tensor);
  bool overflow = false;
  for (const std::int64_t size : tensor.shape) {
    if (size < 0) fail(path, tensor.name, "negative size in shape " + shape_text(tensor.shape));
    overflow |= __builtin_mul_overflow(expected, static_cast<std::uint64_t>(size), &expected);
  }
  if (overflow) {
    fail(path, tensor.name, "shape " + shape_text(tensor.shape) + " is larger than any memory");
  }
  if (expected != tensor.bytes) {
    fail(path, tensor.name,
         "shape " + shape_text(tensor.shape) + " of " + tensor.dtype + " takes " +
             std::to_string(expected) + " bytes, got " + std::to_string(tensor.bytes));
  }
}

/// The order of the data: by falling element size, then by name.
std::vector<const TensorBlob*> layout(const std::filesystem::path& path,
                                      const std::vector<TensorBlob>& tensors) {
  std::set<std::string_view> names;
  std::vector<std::pair<std::size_t, const TensorBlob*>> sized;
  for (const TensorBlob& tensor : tensors) {
    check_size(path, tensor);
    if (tensor.name == kMetadataKey) fail(path, tensor.name, "the name is reserved");
    if (!names.insert(tensor.name).second) fail(path, tensor.name, "given twice");
    if (tensor.data == nullptr && tensor.bytes != 0) fail(path, tensor.name, "has no data");
    sized.emplace_back(element_size(path, tensor), &tensor);
  }
  std::sort(sized.begin(), sized.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second->name < b.second->name;
  });
  std::vector<const TensorBlob*> order;
  order.reserve(sized.size());
  for (const auto& [size, tensor] : sized) order.push_back(tensor);
  return order;
}

/// Parses JSON in which no object repeats a key; nlohmann alone would keep the last of them.
json parse_strictly(const std::filesystem::path& path, std::string_view text) {
  constexpr int kDeepest = 4;  // header > tensor > list is all the format knows
  std::array<std::set<std::string>, kDeepest + 1> keys;
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth >= kDeepest) fail(path, "header: nested too deep for safetensors");
    if (event == json::parse_event_t::object_start) keys[depth + 1].clear();
    if (event == json::parse_event_t::key) {
      const auto& name = value.get_ref<const std::string&>();
      if (!keys[depth].insert(name).second) fail(path, "header: '" + name + "' occurs twice");
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& error) {
    fail(path, std::string("header is not valid JSON: ") + error.what());
  }
}

std::uint64_t unsigned_at(const std::filesystem::path& path, const std::string& tensor,
                          const json& value, const char* what) {
  if (!value.is_number_unsigned()) {
    fail(path, tensor, std::string(what) + " must be a whole number that is not negative");
  }
  return value.get<std::uint64_t>();
}

struct Entry {
  TensorBlob tensor;  // data is not set
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

Entry read_entry(const std::filesystem::path& path, const std::string& name, const json& value,
                 std::uint64_t data_bytes) {
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
      !value.contains("shape") || !value.contains("data_offsets")) {
    fail(path, name, "must have exactly dtype, shape and data_offsets");
  }
  const json& dtype = value["dtype"];
  const json& shape = value["shape"];
  const json& offsets = value["data_offsets"];
  if (!dtype.is_string()) fail(path, name, "dtype must be a string");
  if (!shape.is_array()) fail(path, name, "shape must be a list");
  if (!offsets.is_array() || offsets.size() != 2) {
    fail(path, name, "data_offsets must be a list of two");
  }
  Entry entry;
  entry.tensor.name = name;
  entry.tensor.dtype = dtype.get<std::string>();
  for (const json& size : shape) {
    const std::uint64_t number = unsigned_at(path, name, size, "shape");
    if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      fail(path, name, "size " + std::to_string(number) + " is larger than any memory");
    }
    entry.tensor.shape.push_back(static_cast<std::int64_t>(number));
  }
  entry.begin = unsigned_at(path, name, offsets[0], "data_offsets");
  entry.end = unsigned_at(path, name, offsets[1], "data_offsets");
  if (entry.begin > entry.end || entry.end > data_bytes) {
    fail(path, name,
         "data_offsets [" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) +
             "] do not lie within the " + std::to_string(data_bytes) +
             " bytes of data; the file is damaged or truncated");
  }
  entry.tensor.bytes = entry.end - entry.begin;
  check_size(path, entry.tensor);
  return entry;
}

/// Throws unless the tensors cover the data without gap or overlap.
void check_coverage(const std::filesystem::path& path, std::vector<Entry>& entries,
                    std::uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      fail(path, entry.tensor.name,
           "data starts at byte " + std::to_string(entry.begin) + ", expected " +
               std::to_string(covered) + ": tensors must lie end to end");
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    fail(path, "the tensors end at byte " + std::to_string(covered) + " of " +
                   std::to_string(data_bytes) + " bytes of data");
  }
}

std::map<std::string, std::string> read_metadata(const std::filesystem::path& path,
                                                 const json& value) {
  if (!value.is_object()) fail(path, "__metadata__ must be an object of strings");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) fail(path, "__metadata__: '" + key + "' must be a string");
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

/// Throws where the metadata name a checksum, as all files that were written here do, and it is not
/// this file's.
void check_sum(const std::filesystem::path& path, const json& tensors,
               const std::vector<char>& data, const std::map<std::string, std::string>& metadata) {
  const auto named = metadata.find(kChecksumKey);
  if (named == metadata.end()) return;
  const std::string text = tensors.dump();
  const std::array<std::string_view, 2> pieces{text, std::string_view(data.data(), data.size())};
  const std::string sum = checksum_of(pieces);
  if (sum == named->second) return;
  fail(path, other_checksum(sum, named->second));
}

/// The file's bytes: the header's text apart from the data, so that the data is aligned.
std::pair<std::string, std::vector<char>> read_parts(const std::filesystem::path& path) {
  std::error_code code;
  const std::uintmax_t file_bytes = std::filesystem::file_size(path, code);
  if (code) fail(path, "cannot open: " + code.message());
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail(path, "cannot open: " + std::generic_category().message(errno));
  std::array<unsigned char, kLengthBytes> length_bytes{};
  if (file_bytes < kLengthBytes ||
      !stream.read(reinterpret_cast<char*>(length_bytes.data()), kLengthBytes)) {
    fail(path, "has " + std::to_string(file_bytes) + " bytes, too few for safetensors");
  }
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= static_cast<std::uint64_t>(length_bytes[i]) << (8 * i);
  }
  if (header_bytes > kMaxHeaderBytes || header_bytes > file_bytes - kLengthBytes) {
    fail(path, "claims a header of " + std::to_string(header_bytes) + " bytes in a file of " +
                   std::to_string(file_bytes) + " (at most " + std::to_string(kMaxHeaderBytes) +
                   " are allowed); it is damaged, truncated or not safetensors");
  }
  std::string header(header_bytes, '\0');
  std::vector<char> data(file_bytes - kLengthBytes - header_bytes);
  if (!stream.read(header.data(), static_cast<std::streamsize>(header.size())) ||
      !stream.read(data.data(), static_cast<std::streamsize>(data.size()))) {
    fail(path, "ended while it was read");
  }
  return {std::move(header), std::move(data)};
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const std::vector<TensorBlob>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::vector<const TensorBlob*> order = layout(path, tensors);
  json header = json::object();
  std::vector<std::string_view> pieces(2);
  std::uint64_t offset = 0;
  for (const TensorBlob* tensor : order) {
    header[tensor->name] = {{"dtype", tensor->dtype},
                            {"shape", tensor->shape},
                            {"data_offsets", {offset, offset + tensor->bytes}}};
    offset += tensor->bytes;
    if (tensor->bytes != 0) {
      pieces.emplace_back(static_cast<const char*>(tensor->data), tensor->bytes);
    }
  }
  std::string text;
  try {
    text = header.dump();
    pieces[1] = text;
    std::map<std::string, std::string> own = metadata;
    own[kChecksumKey] = checksum_of(std::span(pieces).subspan(1));
    header[kMetadataKey] = own;
    text = header.dump();
  } catch (const json::exception& error) {
    fail(path, std::string("names and metadata must be UTF-8: ") + error.what());
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxHeaderBytes) {
    fail(path, "the header would take " + std::to_string(text.size()) + " bytes, at most " +
                   std::to_string(kMaxHeaderBytes) + " are allowed");
  }
  std::array<char, kLengthBytes> length{};
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    length[i] = static_cast<char>((text.size() >> (8 * i)) & 0xff);
  }
  pieces[0] = std::string_view(length.data(), length.size());
  pieces[1] = text;
  write_file_atomically(path, pieces);
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  auto [text, data] = read_parts(path);
  if (text.empty() || text.front() != '{') fail(path, "header does not start with '{'");
  json header = parse_strictly(path, text);
  SafetensorsFile file;
  file.path_ = path;
  file.data_ = std::move(data);
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadataKey) {
      file.metadata_ = read_metadata(path, value);
    } else {
      entries.push_back(read_entry(path, name, value, file.data_.size()));
    }
  }
  check_coverage(path, entries, file.data_.size());
  for (Entry& entry : entries) {
    entry.tensor.data = file.data_.data() + entry.begin;
    file.tensors_.emplace(entry.tensor.name, std::move(entry.tensor));
  }
  header.erase(kMetadataKey);
  check_sum(path, header, file.data_, file.metadata_);
  file.metadata_.erase(kChecksumKey);
  return file;
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

bool SafetensorsFile::contains(std::string_view name) const { return tensors_.contains(name); }

const TensorBlob& SafetensorsFile::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    fail(path_, std::string(name),
         "missing; the file holds " + std::to_string(tensors_.size()) + " tensors of other names");
  }
  return found->second;
}

}  // namespace dmamba::train
