// The safetensors format: what is written is read back, and no damaged file gets through.
#include "dmamba/train/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dmamba/common/atomic_file.h"
#include "dmamba/common/error.h"

namespace dmamba::train {
namespace {

namespace fs = std::filesystem;

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    path_ = fs::temp_directory_path() /
            ("dmamba-" + test + "-" + std::to_string(::getpid()) + ".safetensors");
  }
  void TearDown() override { fs::remove(path_); }

  /// Writes `header` with its length, then `data`, and returns what open() says of it.
  std::string error_of(const std::string& header, const std::string& data) {
    std::string bytes(8, '\0');
    const std::uint64_t length = header.size();
    std::memcpy(bytes.data(), &length, 8);
    return error_of_bytes(bytes + header + data);
  }

  std::string error_of_bytes(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    try {
      SafetensorsFile::open(path_);
    } catch (const CheckpointError& error) {
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with("'" + path_.string() + "': ")) << message;
      return message.substr(path_.string().size() + 4);
    }
    return "no error";
  }

  std::string write_error_of(const std::vector<TensorBlob>& tensors) {
    try {
      write_safetensors(path_, tensors);
    } catch (const CheckpointError& error) {
      return std::string(error.what()).substr(path_.string().size() + 4);
    }
    return "no error";
  }

  fs::path path_;
};

const std::vector<float> kFloats{1.0F, -2.5F, 3.25F, 4.0F, 5.0F, 6.0F};
const std::vector<std::int64_t> kIntegers{-1, 1LL << 40};
const std::vector<std::uint8_t> kBytes{1, 0, 1};

std::vector<TensorBlob> some_tensors() {
  return {{"layers.0.weight", "F32", {2, 3}, kFloats.data(), 24},
          {"mask", "BOOL", {3}, kBytes.data(), 3},
          {"b\"ias\u00e9", "I64", {2}, kIntegers.data(), 16},
          {"empty", "F16", {0, 7}, nullptr, 0},
          {"step", "F64", {}, kIntegers.data(), 8}};
}

TEST_F(Safetensors, RoundTrip) {
  write_safetensors(path_, some_tensors(), {{"step", "12"}, {"note", "a\nb"}});
  const SafetensorsFile opened = SafetensorsFile::open(path_);
  EXPECT_EQ(opened.names(),
            (std::vector<std::string>{"b\"ias\u00e9", "empty", "layers.0.weight", "mask", "step"}));
  EXPECT_EQ(opened.metadata(),
            (std::map<std::string, std::string>{{"step", "12"}, {"note", "a\nb"}}));
  for (const TensorBlob& written : some_tensors()) {
    ASSERT_TRUE(opened.contains(written.name));
    const TensorBlob& read = opened.find(written.name);
    EXPECT_EQ(read.name, written.name);
    EXPECT_EQ(read.dtype, written.dtype);
    EXPECT_EQ(read.shape, written.shape);
    ASSERT_EQ(read.bytes, written.bytes);
    const std::string_view expected(static_cast<const char*>(written.data), written.bytes);
    EXPECT_EQ(std::string_view(static_cast<const char*>(read.data), read.bytes), expected);
  }
}

TEST_F(Safetensors, DataIsAlignedAndOrderDoesNotMatter) {
  write_safetensors(path_, some_tensors());
  const std::string bytes = read_file(path_);
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  EXPECT_EQ(header % 8, 0U);
  const SafetensorsFile opened = SafetensorsFile::open(path_);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(opened.find("layers.0.weight").data) % 4, 0U);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(opened.find("step").data) % 8, 0U);
  auto reversed = some_tensors();
  std::reverse(reversed.begin(), reversed.end());
  write_safetensors(path_, reversed);
  EXPECT_EQ(read_file(path_), bytes);
}

TEST_F(Safetensors, ViewsOutliveAMove) {
  write_safetensors(path_, some_tensors());
  SafetensorsFile first = SafetensorsFile::open(path_);
  const void* data = first.find("mask").data;
  const SafetensorsFile second = std::move(first);
  EXPECT_EQ(second.find("mask").data, data);
  EXPECT_EQ(std::memcmp(data, kBytes.data(), 3), 0);
}

TEST_F(Safetensors, NoTensors) {
  write_safetensors(path_, {});
  EXPECT_TRUE(SafetensorsFile::open(path_).names().empty());
}

TEST_F(Safetensors, EveryTruncationAndEveryExtensionIsAnError) {
  write_safetensors(path_, some_tensors(), {{"step", "12"}});
  const std::string bytes = read_file(path_);
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_NE(error_of_bytes(bytes.substr(0, length)), "no error") << length;
  }
  EXPECT_NE(error_of_bytes(bytes + '\0'), "no error");
  EXPECT_EQ(error_of_bytes(bytes), "no error");
}

TEST_F(Safetensors, ChangedBytesNeverCrash) {
  write_safetensors(path_, some_tensors(), {{"step", "12"}});
  const std::string bytes = read_file(path_);
  int rejected = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (const char replacement : {'\xff', '0'}) {
      std::string changed = bytes;
      changed[i] = replacement;
      rejected += error_of_bytes(changed) == "no error" ? 0 : 1;
    }
  }
  EXPECT_GT(rejected, 200);
}

/// The contents by name, in words.
std::map<std::string, std::string> contents(const SafetensorsFile& file) {
  std::map<std::string, std::string> found;
  for (const std::string& name : file.names()) {
    const TensorBlob& blob = file.find(name);
    std::string text = blob.dtype;
    for (const std::int64_t size : blob.shape) text += ' ' + std::to_string(size);
    found[name] = text + ':' + std::string(static_cast<const char*>(blob.data), blob.bytes);
  }
  return found;
}

TEST_F(Safetensors, NoChangedBitIsTakenForWhatWasWritten) {
  write_safetensors(path_, some_tensors(), {{"step", "12"}});
  const std::string bytes = read_file(path_);
  const auto written = contents(SafetensorsFile::open(path_));
  int by_sum = 0;
  for (std::size_t i = 0; i < 8 * bytes.size(); ++i) {
    std::string changed = bytes;
    changed[i / 8] = static_cast<char>(changed[i / 8] ^ (1 << (i % 8)));
    const std::string error = error_of_bytes(changed);
    by_sum += error.find("does not hold what was written: its checksum is") != std::string::npos;
    // What holds no tensor: a space, another key or value of the metadata.
    if (error == "no error") EXPECT_EQ(contents(SafetensorsFile::open(path_)), written) << i;
  }
  EXPECT_GT(by_sum, 8 * (24 + 3 + 16)) << "every bit of the data, at least";
}

TEST_F(Safetensors, AFileWithoutAChecksumIsRead) {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"__metadata__":{"by":"others"}})";
  EXPECT_EQ(error_of(header, "xy"), "no error");
  EXPECT_EQ(SafetensorsFile::open(path_).metadata().at("by"), "others");
}

TEST_F(Safetensors, MissingFilesAndTensors) {
  EXPECT_THROW(SafetensorsFile::open(path_), CheckpointError);
  EXPECT_THROW(SafetensorsFile::open(fs::temp_directory_path()), CheckpointError);
  write_safetensors(path_, some_tensors());
  const SafetensorsFile opened = SafetensorsFile::open(path_);
  EXPECT_FALSE(opened.contains("head"));
  try {
    opened.find("head");
    FAIL();
  } catch (const CheckpointError& error) {
    EXPECT_EQ(std::string(error.what()),
              "'" + path_.string() +
                  "': tensor 'head': missing; the file holds 5 tensors of other names");
  }
}

struct BadHeader {
  const char* header;
  std::size_t data;
  const char* message;
};

TEST_F(Safetensors, BadHeaders) {
  const BadHeader cases[] = {
      {"", 0, "header does not start with '{'"},
      {"[]", 0, "header does not start with '{'"},
      {R"({"a":1})", 0, "tensor 'a': must have exactly dtype, shape and data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4,
       "tensor 'a': must have exactly dtype, shape and data_offsets"},
      {R"({"a":{"dtype":"F8","shape":[1],"data_offsets":[0,1]}})", 1,
       "tensor 'a': dtype 'F8' is not supported; allowed: F64, F32, F16, BF16, I64, I32, U8, BOOL"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4,
       "tensor 'a': shape [2] of F32 takes 8 bytes, got 4"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0,
       "tensor 'a': shape [4611686018427387904] is larger than any memory"},
      {R"({"a":{"dtype":"F32","shape":[2147483648,2147483648,4],"data_offsets":[0,0]}})", 0,
       "tensor 'a': shape [2147483648, 2147483648, 4] is larger than any memory"},
      {R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0]}})", 0,
       "tensor 'a': size 18446744073709551615 is larger than any memory"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4,
       "tensor 'a': shape must be a whole number that is not negative"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4,
       "tensor 'a': shape must be a whole number that is not negative"},
      {R"({"a":{"dtype":"F32","shape":4,"data_offsets":[0,4]}})", 4,
       "tensor 'a': shape must be a list"},
      {R"({"a":{"dtype":32,"shape":[1],"data_offsets":[0,4]}})", 4,
       "tensor 'a': dtype must be a string"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4,
       "tensor 'a': data_offsets must be a list of two"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4,
       "tensor 'a': data_offsets [4, 0] do not lie within the 4 bytes of data; the file is damaged "
       "or truncated"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8,
       "tensor 'a': data starts at byte 4, expected 0: tensors must lie end to end"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, "tensor 'b': data starts at byte 2, expected 4: tensors must lie end to end"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 5,
       "the tensors end at byte 4 of 5 bytes of data"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
       R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
       0, "header: 'a' occurs twice"},
      {R"({"a":{"dtype":"U8","dtype":"F32","shape":[0],"data_offsets":[0,0]}})", 0,
       "header: 'dtype' occurs twice"},
      {R"({"a":[[[[[1]]]]]})", 0, "header: nested too deep for safetensors"},
      {R"({"__metadata__":{"a":1}})", 0, "__metadata__: 'a' must be a string"},
      {R"({"__metadata__":[]})", 0, "__metadata__ must be an object of strings"},
  };
  for (const BadHeader& bad : cases) {
    EXPECT_EQ(error_of(bad.header, std::string(bad.data, '\1')), bad.message) << bad.header;
  }
  EXPECT_EQ(error_of("{\"a\":", "").substr(0, 25), "header is not valid JSON:");
  EXPECT_EQ(error_of("{\"\xff\":1}", "").substr(0, 25), "header is not valid JSON:");
}

TEST_F(Safetensors, AHugeHeaderIsNotAllocated) {
  EXPECT_EQ(error_of_bytes(std::string(7, '\xff') + '\x7f' + "{}"),
            "claims a header of 9223372036854775807 bytes in a file of 10 (at most 100000000 are "
            "allowed); it is damaged, truncated or not safetensors");
}

TEST_F(Safetensors, WritingChecksTheTensors) {
  const float* f = kFloats.data();
  EXPECT_EQ(write_error_of({{"a", "F32", {2}, f, 4}}),
            "tensor 'a': shape [2] of F32 takes 8 bytes, got 4");
  EXPECT_EQ(write_error_of({{"a", "F32", {-1, -1}, f, 4}}),
            "tensor 'a': negative size in shape [-1, -1]");
  EXPECT_EQ(write_error_of({{"a", "F32", {1}, nullptr, 4}}), "tensor 'a': has no data");
  EXPECT_EQ(write_error_of({{"a", "F32", {1}, f, 4}, {"a", "F32", {1}, f, 4}}),
            "tensor 'a': given twice");
  EXPECT_EQ(write_error_of({{"__metadata__", "F32", {1}, f, 4}}),
            "tensor '__metadata__': the name is reserved");
  EXPECT_EQ(write_error_of({{"\xff", "F32", {1}, f, 4}}).substr(0, 33),
            "names and metadata must be UTF-8:");
  EXPECT_FALSE(fs::exists(path_));
}

}  // namespace
}  // namespace dmamba::train
