// Atomic replacement: the new content or the old, and no temporary file left, whatever fails.
#include "dmamba/common/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "dmamba/common/error.h"

namespace dmamba {
namespace {

namespace fs = std::filesystem;

class AtomicFile : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ =
        fs::temp_directory_path() / ("dmamba-atomic-" + test + "-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  int count_files() const {
    return static_cast<int>(std::distance(fs::directory_iterator(folder_), {}));
  }

  fs::path folder_;
};

std::string message_of(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// Lets no file grow beyond `bytes` while it lives: the kernel's way to fail a write half-way, as a
/// full disk does.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit old_{};
};

TEST_F(AtomicFile, WritesAndReplaces) {
  const fs::path path = folder_ / "file";
  write_file_atomically(path, "old");
  EXPECT_EQ(read_file(path), "old");
  const std::string binary("a\0b\xff\n", 5);
  write_file_atomically(path, binary);
  EXPECT_EQ(read_file(path), binary);
  write_file_atomically(path, "");
  EXPECT_EQ(read_file(path), "");
  EXPECT_EQ(count_files(), 1);
}

TEST_F(AtomicFile, JoinsPieces) {
  const std::array<std::string_view, 4> pieces{"one", "", " two", " three"};
  write_file_atomically(folder_ / "file", pieces);
  EXPECT_EQ(read_file(folder_ / "file"), "one two three");
}

TEST_F(AtomicFile, LongNamesAndTheCurrentFolder) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  const std::string name(255, 'n');
  write_file_atomically(name, "x");
  fs::current_path(before);
  EXPECT_EQ(read_file(folder_ / name), "x");
}

TEST_F(AtomicFile, AFailedWriteLeavesTheOldFileAndNothingElse) {
  const fs::path path = folder_ / "file";
  write_file_atomically(path, "old");
  std::string message;
  {
    const FileSizeLimit limit(1000);
    message = message_of([&] { write_file_atomically(path, std::string(5000, 'x')); });
  }
  EXPECT_EQ(message, "'" + path.string() + "': cannot write: File too large");
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(count_files(), 1);
}

TEST_F(AtomicFile, ErrorsNamePathAndCause) {
  const fs::path missing = folder_ / "none" / "file";
  EXPECT_EQ(message_of([&] { write_file_atomically(missing, "x"); }),
            "'" + missing.string() +
                "': cannot create a temporary file beside it: No such file or directory");
  EXPECT_EQ(message_of([&] { read_file(missing); }),
            "'" + missing.string() + "': cannot open: No such file or directory");
  EXPECT_EQ(message_of([&] { read_file(folder_); }),
            "'" + folder_.string() + "': cannot read: Is a directory");
  fs::create_directory(folder_ / "sub");
  EXPECT_EQ(message_of([&] { write_file_atomically(folder_ / "sub", "x"); }),
            "'" + (folder_ / "sub").string() + "': cannot replace: Is a directory");
  EXPECT_EQ(count_files(), 1) << "the temporary file must be gone";
}

TEST_F(AtomicFile, ReadingIsBounded) {
  const fs::path path = folder_ / "file";
  write_file_atomically(path, std::string(100, 'x'));
  EXPECT_EQ(read_file(path, 100).size(), 100U);
  EXPECT_EQ(message_of([&] { read_file(path, 99); }),
            "'" + path.string() + "': longer than 99 bytes");
}

TEST_F(AtomicFile, ConcurrentWritersLeaveOneWholeFile) {
  const fs::path path = folder_ / "file";
  std::vector<std::thread> threads;
  for (char letter = 'a'; letter < 'e'; ++letter) {
    threads.emplace_back([&path, letter] {
      for (int i = 0; i < 20; ++i) write_file_atomically(path, std::string(10000, letter));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string content = read_file(path);
  EXPECT_EQ(content, std::string(10000, content.at(0)));
  EXPECT_EQ(count_files(), 1);
}

class AtomicFolder : public AtomicFile {
 protected:
  /// A folder with one file.
  fs::path make(const std::string& name, const std::string& content) const {
    fs::create_directory(folder_ / name);
    write_file_atomically(folder_ / name / "file", content);
    return folder_ / name;
  }
};

TEST_F(AtomicFolder, TakesTheNewPlaceAndLeavesNothingOfTheOld) {
  const fs::path target = folder_ / "target";
  for (const bool can_exchange : {true, false}) {
    for (int i = 0; i < 3; ++i) {
      replace_folder_atomically(make("fresh", std::to_string(i)), target, can_exchange);
      EXPECT_EQ(read_file(target / "file"), std::to_string(i));
      EXPECT_EQ(count_files(), 1);
    }
    fs::remove_all(target);
  }
}

TEST_F(AtomicFolder, WhatAKilledProcessHasLeftStaysUntilTheNewOneStands) {
  make(".target.old", "before");
  replace_folder_atomically(make("fresh", "now"), folder_ / "target", false);
  EXPECT_EQ(read_file(folder_ / "target/file"), "now");
  EXPECT_EQ(count_files(), 1);
}

TEST_F(AtomicFolder, FailureLeavesTheOldOneAndNamesThePath) {
  const fs::path target = make("target", "old");
  for (const bool can_exchange : {true, false}) {
    const std::string message =
        message_of([&] { replace_folder_atomically(folder_ / "none", target, can_exchange); });
    EXPECT_NE(message.find("'" + target.string() + "': cannot replace"), std::string::npos)
        << message;
    EXPECT_EQ(read_file(target / "file"), "old");
  }
}

}  // namespace
}  // namespace dmamba
