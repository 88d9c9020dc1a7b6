// The parent's side of the check: start the program, wait for its word, remember it.
#include "data/readers/file_check.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>
#include <utility>

#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

namespace fs = std::filesystem;

constexpr const char* kProgram = "dmamba-check-file";
constexpr int kReaderVersion = 1;  // raise it where the readers come to accept what they refused
constexpr std::size_t kLongestMessage = 1 << 16;
constexpr std::uintmax_t kLongestMemory = 1 << 20;  // bytes of the file that remembers

std::string reason(int code) { return std::generic_category().message(code); }

bool trusted() {
  const char* text = std::getenv("DMAMBA_TRUST_FILES");
  return text != nullptr && std::string_view(text) == "1";
}

FileState state_of(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) {
    throw DataError(path + ": cannot be looked at: " + reason(errno));
  }
  const auto nanoseconds = [](const timespec& time) {
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  };
  return {.device = status.st_dev,
          .inode = status.st_ino,
          .size = static_cast<std::uint64_t>(status.st_size),
          .modified_ns = nanoseconds(status.st_mtim),
          .changed_ns = nanoseconds(status.st_ctim)};
}

// Beside the library (or the program) that this code is in.
std::string program_path() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&program_path), &info) == 0) return kProgram;
  std::error_code error;
  const fs::path self = fs::absolute(info.dli_fname, error);
  return (self.parent_path() / kProgram).string();
}

// Files that were read, one a line.
class Memory {
 public:
  Memory(const FileState& state, const std::string& reader) {
    const char* home = std::getenv("HOME");
    if (home != nullptr && *home != '\0') path_ = fs::path(home) / ".cache/dmamba/checked-files";
    for (const auto& part : {std::to_string(kReaderVersion), reader, std::to_string(state.device),
                             std::to_string(state.inode), std::to_string(state.size),
                             std::to_string(state.modified_ns), std::to_string(state.changed_ns)}) {
      line_ += (line_.empty() ? "" : " ") + part;
    }
  }

  bool knows() const {
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) {
      if (line == line_) return true;
    }
    return false;
  }

  // Where that cannot be written, the file is checked again the next time.
  void add() const {
    if (path_.empty()) return;
    std::error_code error;
    fs::create_directories(path_.parent_path(), error);
    if (fs::file_size(path_, error) > kLongestMemory && !error) fs::remove(path_, error);
    const int fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) return;
    const std::string text = line_ + "\n";
    // In one piece: other processes append, too.
    [[maybe_unused]] const ssize_t written = ::write(fd, text.data(), text.size());
    ::close(fd);
  }

 private:
  fs::path path_;
  std::string line_;
};

// Its standard output is `out`; it sees neither our standard input nor our terminal.
pid_t start(const std::string& program, const std::string& reader, const std::string& path,
            const Storage& storage, int out) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, 1);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  // What other threads have open, HDF5 leaves to children: they would hold its locks.
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  std::array<std::string, 6> words{
      program, reader, path, storage.kind, storage.scratch, std::to_string(storage.memory_limit)};
  std::array<char*, 7> arguments{};
  std::transform(words.begin(), words.end(), arguments.begin(),
                 [](std::string& word) { return word.data(); });
  pid_t child = -1;
  const int code =
      ::posix_spawn(&child, program.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (code != 0) {
    throw DataError(path + ": cannot be checked, since " + program +
                    " cannot be started: " + reason(code) +
                    "; install dmamba again, or set DMAMBA_TRUST_FILES=1 to open files unchecked");
  }
  return child;
}

std::string read_all(int fd) {
  std::string text;
  std::array<char, 4096> block{};
  for (;;) {
    const ssize_t count = ::read(fd, block.data(), block.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return text;
    if (text.size() < kLongestMessage) text.append(block.data(), static_cast<std::size_t>(count));
  }
}

// How the program ended, in words; whoever ignores SIGCHLD cannot be told.
std::string wait_for(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return "ended without a word";
  }
  if (WIFSIGNALED(status)) {
    const int number = WTERMSIG(status);
    if (number == SIGXCPU || number == SIGALRM) return "did not come to an end";
    return std::string("died of it (") + ::strsignal(number) + ")";
  }
  return "ended without a word (status " + std::to_string(WEXITSTATUS(status)) + ")";
}

// The program's message, kFileWasRead where all is well.
std::string ask(const std::string& reader, const std::string& path, const Storage& storage) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    throw DataError(path + ": cannot be checked: " + reason(errno));
  }
  pid_t child = -1;
  try {
    child = start(program_path(), reader, path, storage, ends[1]);
  } catch (...) {
    ::close(ends[0]);
    ::close(ends[1]);
    throw;
  }
  ::close(ends[1]);
  std::string text = read_all(ends[0]);
  ::close(ends[0]);
  const std::string end = wait_for(child);
  if (!text.empty()) return text;
  return path + ": the file is damaged: a process that read it to try it " + end +
         "; download or copy it again";
}

}  // namespace

FileCheck::FileCheck(std::string path, const std::string& reader, const Storage& storage)
    : path_(std::move(path)) {
  state_ = state_of(path_);
  if (trusted()) return;
  const Memory memory(state_, reader);
  if (memory.knows()) return;
  const std::string message = ask(reader, path_, storage);
  if (message != kFileWasRead) throw DataError(message);
  require_unchanged();
  memory.add();
}

void FileCheck::require_unchanged() const {
  if (state_of(path_) != state_) {
    throw FileChangedError(path_ + ": the file changed while it was read; open it again");
  }
}

}  // namespace dmamba::data
