// The D4RL reader on files whose fields are missing, wrong, incomplete, damaged or truncated.
#include <fstream>
#include <iterator>
#include <limits>

#include "dmamba/common/error.h"
#include "dmamba/data/reader.h"
#include "test_support.h"

namespace dmamba::data {
namespace {

using testing::expect_contains;
using testing::Hdf5Writer;
using testing::Layout;
using testing::message_of;
using testing::TemporaryFolder;

class D4rlErrors : public ::testing::Test {
 protected:
  // The error about a file of good fields, of which `spoil` made bad ones.
  std::string error_after(const std::function<void(Hdf5Writer&)>& spoil) {
    {
      Hdf5Writer writer(path_);
      writer.good_fields();
      spoil(writer);
    }
    return error();
  }
  std::string error() {
    const std::string message = message_of<DataError>([&] { open_dataset(path_); });
    expect_contains(message, {path_ + ": "});
    return message;
  }
  std::string bytes() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write_bytes(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("bad.hdf5");
};

// Deletes the field and writes float32 values of this shape in its place.
void replace(Hdf5Writer& writer, const std::string& name, const std::vector<hsize_t>& shape,
             const std::vector<float>& values, const Layout& layout = {}) {
  writer.remove(name);
  writer.floats(name, shape, values, layout);
}

TEST_F(D4rlErrors, TheUnspoiltFileIsGood) {
  {
    Hdf5Writer writer(path_);
    writer.good_fields();
  }
  EXPECT_EQ(open_dataset(path_)->num_episodes(), 2);
}

TEST_F(D4rlErrors, MissingFields) {
  expect_contains(
      error_after([](Hdf5Writer& w) {
        w.remove("rewards");
        w.remove("actions");
      }),
      {"missing actions, rewards (", "the file has observations, terminals, timeouts)"});
}

TEST_F(D4rlErrors, MissingTimeoutsAreExplained) {
  expect_contains(error_after([](Hdf5Writer& w) { w.remove("timeouts"); }),
                  {"missing timeouts (", "time limit", "add them, all false"});
}

TEST_F(D4rlErrors, NothingInTheFile) {
  {
    Hdf5Writer writer(path_);
  }
  expect_contains(error(), {"missing observations, actions, rewards, terminals, timeouts",
                            "the file has nothing"});
}

TEST_F(D4rlErrors, GroupInPlaceOfADataset) {
  expect_contains(error_after([](Hdf5Writer& w) {
                    w.remove("observations");
                    w.group("observations");
                  }),
                  {"'observations' must be a dataset, but is a group"});
}

TEST_F(D4rlErrors, WrongRank) {
  expect_contains(error_after([](Hdf5Writer& w) { replace(w, "observations", {4}, {1, 2, 3, 4}); }),
                  {"observations must be (transitions, components), got (4,)"});
  expect_contains(
      error_after([](Hdf5Writer& w) { replace(w, "actions", {4, 1, 1}, {1, 2, 3, 4}); }),
      {"actions must be (transitions, components), got (4, 1, 1)"});
  expect_contains(
      error_after([](Hdf5Writer& w) { replace(w, "rewards", {4, 2}, {1, 2, 3, 4, 5, 6, 7, 8}); }),
      {"rewards must be (transitions,) or (transitions, 1), got (4, 2)"});
}

TEST_F(D4rlErrors, WrongType) {
  expect_contains(error_after([](Hdf5Writer& w) {
                    w.remove("actions");
                    w.dataset<int>("actions", {4, 1}, H5T_STD_I32LE, H5T_NATIVE_INT, {1, 2, 3, 4});
                  }),
                  {"actions must be float32 or float64, got int32"});
  expect_contains(error_after([](Hdf5Writer& w) { replace(w, "timeouts", {4}, {0, 0, 0, 1}); }),
                  {"timeouts must be bool, uint8 or int8, got float32"});
}

TEST_F(D4rlErrors, FlagsOtherThanZeroAndOne) {
  for (const std::int8_t value : {2, -1}) {
    expect_contains(error_after([value](Hdf5Writer& w) {
                      w.remove("terminals");
                      w.flags("terminals", {4}, {0, 0, value, 0});
                    }),
                    {"terminals row 2 is " + std::to_string(value), "0 or 1"});
  }
}

TEST_F(D4rlErrors, DifferentLengths) {
  expect_contains(
      error_after([](Hdf5Writer& w) { replace(w, "rewards", {3}, {1, 2, 3}); }),
      {"differ in length", "observations 4, actions 4, rewards 3, terminals 4, timeouts 4"});
}

TEST_F(D4rlErrors, Empty) {
  {
    Hdf5Writer writer(path_);
    const Layout none{.rows = 0};
    writer.floats("observations", {0, 2}, {}, none);
    writer.floats("actions", {0, 1}, {}, none);
    writer.floats("rewards", {0}, {}, none);
    writer.flags("terminals", {0}, {}, none);
    writer.flags("timeouts", {0}, {}, none);
  }
  expect_contains(error(), {"the dataset is empty (observations has 0 rows)"});
}

TEST_F(D4rlErrors, ValuesAreValidatedToo) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect_contains(
      error_after([nan](Hdf5Writer& w) { replace(w, "rewards", {4}, {1, nan, 1, nan}); }),
      {"rewards row 1 is NaN", "2 such values"});
  // finite as float64, but not as float32
  expect_contains(error_after([](Hdf5Writer& w) {
                    w.remove("actions");
                    w.dataset<double>("actions", {4, 1}, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE,
                                      {1, 2, 3, 1e300});
                  }),
                  {"actions row 3 is infinite"});
}

TEST_F(D4rlErrors, DeclaredButNeverWritten) {
  expect_contains(error_after([](Hdf5Writer& w) { replace(w, "rewards", {4}, {}, {.rows = 0}); }),
                  {"dataset 'rewards' of shape (4,) was declared but never written"});
}

TEST_F(D4rlErrors, NotWrittenToItsEnd) {
  expect_contains(error_after([](Hdf5Writer& w) {
                    replace(w, "rewards", {40}, std::vector<float>(25, 1),
                            {.chunk = {10}, .rows = 25});
                  }),
                  {"dataset 'rewards' of shape (40,) was not written to its end", "3 of 4 chunks"});
}

TEST_F(D4rlErrors, DataInAnotherFile) {
  const std::string other = folder_.file("raw");
  expect_contains(error_after([&](Hdf5Writer& w) {
                    replace(w, "rewards", {4}, {1, 2, 3, 4}, {.external = other});
                  }),
                  {"'rewards'", "keeps its data in other files", "h5repack"});
}

TEST_F(D4rlErrors, HugeClaimsAllocateNothing) {
  // The header says 2^60 rows where 4321 were stored.
  constexpr std::uint64_t kRows = 4321, kClaimed = std::uint64_t{1} << 60;
  for (const Layout& layout : {Layout{}, Layout{.chunk = {kRows}, .gzip = true}}) {
    {
      Hdf5Writer writer(path_);
      writer.good_fields();
      replace(writer, "rewards", {kRows}, std::vector<float>(kRows, 1), layout);
    }
    std::string content = bytes();
    const auto number = [](std::uint64_t n) {
      return std::string(reinterpret_cast<const char*>(&n), sizeof(n));
    };
    const std::size_t dims = content.find(number(kRows));
    ASSERT_NE(dims, std::string::npos);
    content.replace(dims, 8, number(kClaimed)).replace(dims + 8, 8, number(kClaimed));
    write_bytes(content);
    expect_contains(error(), {"rewards", std::to_string(kClaimed)});
  }
}

TEST_F(D4rlErrors, WhatCompressesWellIsNoHugeClaim) {
  constexpr hsize_t kRows = 1'000'000;
  const Layout gzip{.chunk = {kRows}, .gzip = true};
  const Layout matrix{.chunk = {kRows, 1}, .gzip = true};
  std::vector<std::int8_t> ends(kRows, 0);
  ends.back() = 1;
  {
    Hdf5Writer writer(path_);
    writer.floats("observations", {kRows, 1}, std::vector<float>(kRows, 0), matrix);
    writer.floats("actions", {kRows, 1}, std::vector<float>(kRows, 0), matrix);
    writer.floats("rewards", {kRows}, std::vector<float>(kRows, 0), gzip);
    writer.flags("terminals", {kRows}, ends, gzip);
    writer.flags("timeouts", {kRows}, std::vector<std::int8_t>(kRows, 0), gzip);
  }
  EXPECT_LT(std::filesystem::file_size(path_), 14 * kRows / 500);
  EXPECT_EQ(open_dataset(path_)->num_transitions(), kRows);
}

TEST_F(D4rlErrors, TruncatedContiguous) {
  constexpr hsize_t kRows = 10000;
  {
    Hdf5Writer writer(path_);
    writer.good_fields();
    replace(writer, "actions", {kRows, 1}, std::vector<float>(kRows, 1));
  }
  const std::string content = bytes();
  write_bytes(content.substr(0, content.size() - 1000));
  const std::string size = std::to_string(content.size());
  expect_contains(error(), {"truncated", std::to_string(content.size() - 1000) + " of " + size,
                            "(1000 missing)", "incomplete: actions (1000 bytes short)",
                            "download or copy it again"});
}

TEST_F(D4rlErrors, TruncatedChunked) {
  constexpr hsize_t kRows = 10000;
  {
    Hdf5Writer writer(path_);
    writer.good_fields();
    replace(writer, "actions", {kRows, 1}, std::vector<float>(kRows, 1), {.chunk = {1000, 1}});
  }
  const std::string content = bytes();
  write_bytes(content.substr(0, content.size() - 5000));
  expect_contains(error(),
                  {"(5000 missing)", "incomplete: actions (5000 bytes short, 2 of 10 chunks)"});
}

TEST_F(D4rlErrors, TruncatedAnywhereIsAnError) {
  {
    Hdf5Writer writer(path_);
    writer.good_fields();
    replace(writer, "actions", {4, 1}, {1, 2, 3, 4}, {.chunk = {2, 1}, .gzip = true});
  }
  const std::string content = bytes();
  ASSERT_GT(content.size(), 1000);
  for (std::size_t size = 1; size < content.size(); size += 97) {
    SCOPED_TRACE(size);
    write_bytes(content.substr(0, size));
    error();
  }
}

TEST_F(D4rlErrors, DamagedCompressedData) {
  std::vector<float> values(1000);
  std::iota(values.begin(), values.end(), 0.5f);
  {
    Hdf5Writer writer(path_);
    writer.good_fields();
    replace(writer, "rewards", {1000}, values, {.chunk = {1000}, .gzip = true});
    replace(writer, "observations", {1000, 1}, values);
    replace(writer, "actions", {1000, 1}, values);
    for (const std::string name : {"terminals", "timeouts"}) {
      writer.remove(name);
      writer.flags(name, {1000}, std::vector<std::int8_t>(1000, 1));
    }
  }
  std::string content = bytes();
  const std::size_t stream = content.find("\x78\xda");  // zlib's header at level 9
  ASSERT_NE(stream, std::string::npos);
  content.replace(stream + 40, 200, std::string(200, '\xff'));
  write_bytes(content);
  expect_contains(error(), {"dataset 'rewards' cannot be read: inflate() failed", "damaged"});
}

}  // namespace
}  // namespace dmamba::data
