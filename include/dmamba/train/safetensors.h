// The safetensors format (github.com/huggingface/safetensors), read and written without torch:
//
//   8 bytes N (little endian) | N bytes JSON: name -> {dtype, shape, data_offsets}, __metadata__ |
//   data
//
// The reader trusts nothing: every length, offset, name and dtype of a file is checked before use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace dmamba::train {

/// A named array: a view, the bytes belong to someone else. C order, little endian.
struct TensorBlob {
  std::string name;
  std::string dtype;  // F64 F32 F16 BF16 I64 I32 U8 BOOL
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
  std::size_t bytes = 0;
};

/// Replaces the file atomically. Wider dtypes come first in the data, so each tensor is aligned to
/// its dtype. Throws CheckpointError for tensors that contradict themselves or repeat a name, Error
/// where the file cannot be written (the old one then stays).
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorBlob>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// A file held in memory. Movable; views stay valid across moves and for the life of the object.
class SafetensorsFile {
 public:
  /// Reads and checks the whole file. Throws CheckpointError that names file and tensor.
  static SafetensorsFile open(const std::filesystem::path& path);

  SafetensorsFile(SafetensorsFile&&) noexcept = default;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept = default;
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;
  ~SafetensorsFile() = default;

  /// Names of the tensors, sorted.
  std::vector<std::string> names() const;

  bool contains(std::string_view name) const;

  /// The tensor of that name. The data of a file written elsewhere need not be aligned: copy it
  /// with memcpy. Throws CheckpointError where there is none.
  const TensorBlob& find(std::string_view name) const;

  /// The file's own key-value strings.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  SafetensorsFile() = default;

  std::filesystem::path path_;
  std::vector<char> data_;  // a vector's bytes stay put when it is moved, a short string's do not
  std::map<std::string, TensorBlob, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace dmamba::train
