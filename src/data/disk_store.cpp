// See disk_store.h.
#include "data/disk_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "data/validation.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

constexpr std::int64_t kBlockValues = 1 << 20;  // 4 MiB

std::string cause() { return std::generic_category().message(errno); }

// Throws where writing to a scratch file in this folder failed.
[[noreturn]] void fail_scratch(const std::string& folder) {
  throw DataError(folder +
                  ": no scratch file can be written there, which a dataset that stays on "
                  "disk needs: " +
                  cause() + "; make room there, or let DMAMBA_DATA name another folder");
}

}  // namespace

std::shared_ptr<RandomFile> RandomFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw DataError(path + ": cannot be opened for reading: " + cause());
  // Segments lie anywhere: what the kernel would read ahead is of no use. A hint that may fail.
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
  return std::shared_ptr<RandomFile>(new RandomFile(fd, path));
}

std::shared_ptr<RandomFile> RandomFile::scratch(const std::string& folder) {
  std::error_code ignored;
  std::string place = folder;
  if (place.empty()) place = std::filesystem::temp_directory_path(ignored).string();
  std::filesystem::create_directories(place, ignored);  // the file says whether it is there
  std::string name = place + "/.dmamba-scratch-XXXXXX";
  const int fd = ::mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) fail_scratch(place);
  ::unlink(name.c_str());  // O_TMPFILE would do both, but network file systems have none
  return std::shared_ptr<RandomFile>(new RandomFile(fd, place));
}

RandomFile::~RandomFile() { ::close(fd_); }

void RandomFile::read(std::uint64_t offset, std::span<float> values) const {
  const std::span<std::byte> bytes = std::as_writable_bytes(values);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t got =
        ::pread(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw DataError(name_ + ": cannot be read: " + cause());
    if (got == 0) {
      throw DataError(name_ + ": ends at byte " + std::to_string(offset + done) +
                      ", before its data do: it has become shorter since it was opened; leave a "
                      "dataset alone while it is in use");
    }
    done += static_cast<std::size_t>(got);
  }
}

void RandomFile::write(std::uint64_t offset, std::span<const float> values) const {
  const std::span<const std::byte> bytes = std::as_bytes(values);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t put =
        ::pwrite(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail_scratch(name_);
    done += static_cast<std::size_t>(put);
  }
}

void DiskColumn::read(std::int64_t first, std::int64_t count, float* out) const {
  file->read(offset + static_cast<std::uint64_t>(first * width) * sizeof(float),
             {out, static_cast<std::size_t>(count * width)});
}

void ScratchColumn::append(std::span<const float> values) {
  file_->write(bytes_, values);
  bytes_ += values.size_bytes();
}

std::int64_t rows_of_block(std::int64_t width) {
  return std::max<std::int64_t>(1, kBlockValues / width);
}

std::shared_ptr<DiskStore> DiskStore::create(Columns columns, EpisodeFinder ends, std::string name,
                                             Metadata metadata, const Storage& storage) {
  std::shared_ptr<DiskStore> store(
      new DiskStore(std::move(columns), std::move(name), std::move(metadata)));
  store->check_values(ends.rows(), storage);
  store->episodes_ = ends.take(store->name_);
  store->dropped_ = ends.dropped();
  store->rows_ = ends.rows() - ends.dropped();
  store->sum_all_returns(storage.scratch);
  return store;
}

DiskStore::DiskStore(Columns columns, std::string name, Metadata metadata)
    : columns_(std::move(columns)), name_(std::move(name)), metadata_(std::move(metadata)) {}

void DiskStore::check_values(std::int64_t rows, const Storage& storage) const {
  const std::pair<const char*, const DiskColumn*> fields[] = {
      {"observations", &columns_.observations},
      {"actions", &columns_.actions},
      {"rewards", &columns_.rewards}};
  std::int64_t done = 0, total = 0;
  for (const auto& [field, column] : fields) total += rows * column->width * 4;
  std::vector<float> block;
  for (const auto& [field, column] : fields) {
    FiniteCheck check;
    const std::int64_t most = rows_of_block(column->width);
    for (std::int64_t first = 0; first < rows; first += most) {
      const std::int64_t count = std::min(most, rows - first);
      block.resize(static_cast<std::size_t>(count * column->width));
      column->read(first, count, block.data());
      check.add(block);
      done += count * column->width * 4;
      if (storage.progress) storage.progress(done, total);
    }
    check.require(name_, field, column->width);
  }
}

void DiskStore::sum_all_returns(const std::string& scratch_folder) {
  const auto file = RandomFile::scratch(scratch_folder);
  std::vector<float> rewards, rtg;
  for (Episode& e : episodes_) {
    for (std::int64_t end = e.start + e.length; end > e.start;) {
      const std::int64_t first = std::max(e.start, end - rows_of_block(1));
      rewards.resize(static_cast<std::size_t>(end - first));
      rtg.resize(rewards.size());
      columns_.rewards.read(first, end - first, rewards.data());
      e.ret = sum_returns(name_, rewards, first, e.ret, rtg);
      file->write(static_cast<std::uint64_t>(first) * sizeof(float), rtg);
      end = first;
    }
  }
  rtg_ = {file, 0, 1};
}

Episode DiskStore::episode(std::int64_t i) const {
  require_episode(*this, i);
  return episodes_[static_cast<std::size_t>(i)];
}

void DiskStore::read(std::int64_t first, std::int64_t count, float* states, float* actions,
                     float* rewards, float* rtg) const {
  require_range(*this, first, count);
  if (states != nullptr) columns_.observations.read(first, count, states);
  if (actions != nullptr) columns_.actions.read(first, count, actions);
  if (rewards != nullptr) columns_.rewards.read(first, count, rewards);
  if (rtg != nullptr) rtg_.read(first, count, rtg);
}

std::uint64_t bytes_in_memory(std::int64_t rows, std::int64_t state_dim, std::int64_t act_dim) {
  // state, action, reward and return-to-go; and the flags, of two bytes while they are read
  return static_cast<std::uint64_t>(rows) *
         (static_cast<std::uint64_t>(state_dim + act_dim + 2) * sizeof(float) + 4);
}

}  // namespace dmamba::data
