// dmamba-check-file READER FILE STORAGE SCRATCH LIMIT (of data::Storage): reads a file as the
// library does, in a process that may die of it, and prints "read" or why not. Started by
// src/data/readers/file_check.cpp.
#include <hdf5.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <new>
#include <string>

#include "data/readers/file_check.h"
#include "data/readers/readers.h"
#include "data/readers/replay_cache.h"

namespace {

// An honest file takes a second a hundred megabytes.
constexpr std::uint64_t kSeconds = 20;
constexpr std::uint64_t kBytesPerSecond = 1 << 20;
constexpr std::uint64_t kStack = 1 << 20;  // less than any thread of a user's has
constexpr std::uint64_t kPatience = 10;    // wall clock to processor time: slow disks

void limit(int resource, std::uint64_t most) {
  rlimit now{};
  getrlimit(static_cast<__rlimit_resource>(resource), &now);
  now.rlim_cur = std::min<rlim_t>(most, now.rlim_max);
  now.rlim_max = now.rlim_cur;
  setrlimit(static_cast<__rlimit_resource>(resource), &now);
}

// What does not fit into this machine's memory could not be used anyway.
[[maybe_unused]] std::uint64_t memory_of_machine() {
  return static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

void limit_all(const char* path) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::signal(SIGINT, SIG_IGN);  // Ctrl-C is for the process that waits
  // Where memory runs out all the same, this process goes first.
  std::ofstream("/proc/self/oom_score_adj") << 1000;
  struct stat status{};
  stat(path, &status);
  const std::uint64_t seconds =
      kSeconds + static_cast<std::uint64_t>(status.st_size) / kBytesPerSecond;
  limit(RLIMIT_CORE, 0);
#if !defined(__SANITIZE_ADDRESS__)  // which sets terabytes of addresses aside
  limit(RLIMIT_AS, memory_of_machine());
#endif
  limit(RLIMIT_STACK, kStack);
  // What reads memory that it has freed, or never wrote, shall not get away with it by chance here,
  // and then fall in the process that was to be spared.
  mallopt(M_PERTURB, 0xa5);
  limit(RLIMIT_CPU, seconds);
  alarm(static_cast<unsigned>(kPatience * seconds));
}

std::string read(const std::string& reader, const std::string& path,
                 const dmamba::data::Storage& storage) {
  try {
    if (reader == "converted") {
      dmamba::data::open_converted_here(path, path, "");
    } else {
      dmamba::data::open_dataset_here(path, reader, storage);
    }
    return dmamba::data::kFileWasRead;
  } catch (const std::bad_alloc&) {
    return path + ": its content does not fit into the memory of this machine, " +
           std::to_string(memory_of_machine()) + " bytes";
  } catch (const std::exception& error) {
    return error.what();
  }
}

// Closes the library, as at the end of the process that will use the file. It complains to standard
// error alone where damaged content leaves it with something that it cannot get rid of.
bool closes_quietly() {
  const int heard = memfd_create("stderr", 0);
  dup2(heard, STDERR_FILENO);
  H5close();
  struct stat status{};
  return fstat(heard, &status) == 0 && status.st_size == 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) {
    std::fputs("usage: dmamba-check-file READER FILE STORAGE SCRATCH LIMIT\n", stderr);
    return 2;
  }
  limit_all(arguments[2]);
  dmamba::data::Storage storage{arguments[3], arguments[4]};
  storage.memory_limit = std::strtoull(arguments[5], nullptr, 10);
  std::string message = read(arguments[1], arguments[2], storage);
  if (!closes_quietly() && message == dmamba::data::kFileWasRead) {
    message = std::string(arguments[2]) +
              ": the file is damaged: the HDF5 library cannot close what it has opened of it; "
              "download or copy it again";
  }
  std::fwrite(message.data(), 1, message.size(), stdout);
  std::fflush(stdout);
  _exit(message == dmamba::data::kFileWasRead ? 0 : 1);
}
