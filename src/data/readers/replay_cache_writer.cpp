// HDF5 makes the file with all but the frames; these are written where it has left room for them,
// by several threads and past HDF5's lock.
#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <filesystem>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "data/readers/hdf5_session.h"
#include "data/readers/host_name.h"
#include "data/readers/replay_cache.h"
#include "data/readers/replay_cache_format.h"
#include "dmamba/common/atomic_file.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSinkRows = 128;               // 0.9 MB
constexpr std::int64_t kColumnBytes = 4 + 4 + 8 + 1;  // of a row, where each is an episode
constexpr std::int64_t kMetadataBytes = 1 << 16;

[[noreturn]] void fail(const std::string& path, const std::string& reason) {
  throw DataError(path + ": the converted recording cannot be written: " + reason +
                  "; make room there, or choose another cache folder");
}

// Writes the datasets of a new file. Needs a live session.
class Maker {
 public:
  Maker(const std::string& target, const std::string& temporary) : target_(target) {
    const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    // Since 1.8 the format has checksums over all but the data: HDF5 then notices damage rather
    // than stumble over it.
    H5Pset_libver_bounds(access.id(), H5F_LIBVER_V18, H5F_LIBVER_LATEST);
    // Nobody else knows the name. HDF5's lock would live on in a process that another thread starts
    // meanwhile, and keep readers out under the final name.
    H5Pset_file_locking(access.id(), /*use_file_locking=*/false, /*ignore_when_disabled=*/true);
    const Hdf5Handle creation = timeless(H5P_FILE_CREATE);
    file_ = Hdf5Handle(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, creation.id(), access.id()),
                       H5Fclose);
    require(file_.valid());
  }

  void array(const char* name, hid_t file_type, hid_t memory_type, std::size_t size,
             const void* values) {
    const hsize_t extent = size;
    const Hdf5Handle space(H5Screate_simple(1, &extent, nullptr), H5Sclose);
    const Hdf5Handle plist = timeless(H5P_DATASET_CREATE);
    Hdf5Handle dataset = create(file_.id(), name, file_type, space.id(), plist.id());
    require(H5Dwrite(dataset.id(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
    require(dataset.close());
  }

  void strings(const char* group, const Metadata& values) {
    const Hdf5Handle creation = timeless(H5P_GROUP_CREATE), plist = timeless(H5P_DATASET_CREATE);
    Hdf5Handle object(H5Gcreate2(file_.id(), group, H5P_DEFAULT, creation.id(), H5P_DEFAULT),
                      H5Gclose);
    require(object.valid());
    for (const auto& [name, text] : values) {
      const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
      H5Tset_size(type.id(), text.size() + 1);
      H5Tset_cset(type.id(), H5T_CSET_UTF8);
      const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose);
      Hdf5Handle dataset = create(object.id(), name.c_str(), type.id(), space.id(), plist.id());
      require(H5Dwrite(dataset.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, text.c_str()) >= 0);
      require(dataset.close());
    }
    require(object.close());
  }

  // Makes room for the frames; returns where.
  std::int64_t frames(std::int64_t rows) {
    const hsize_t shape[] = {static_cast<hsize_t>(rows), static_cast<hsize_t>(kFrameSide),
                             static_cast<hsize_t>(kFrameSide)};
    const Hdf5Handle space(H5Screate_simple(3, shape, nullptr), H5Sclose);
    const Hdf5Handle plist = timeless(H5P_DATASET_CREATE);
    H5Pset_layout(plist.id(), H5D_CONTIGUOUS);
    H5Pset_alloc_time(plist.id(), H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(plist.id(), H5D_FILL_TIME_NEVER);
    Hdf5Handle dataset = create(file_.id(), "frames", H5T_STD_U8LE, space.id(), plist.id());
    const haddr_t offset = H5Dget_offset(dataset.id());
    require(offset != HADDR_UNDEF);
    require(dataset.close());
    return static_cast<std::int64_t>(offset);
  }

  void close() {
    require(H5Fflush(file_.id(), H5F_SCOPE_GLOBAL) >= 0);
    require(file_.close());
  }

 private:
  // Properties of a new object that notes no time: the same recording becomes the same bytes.
  static Hdf5Handle timeless(hid_t kind) {
    Hdf5Handle plist(H5Pcreate(kind), H5Pclose);
    H5Pset_obj_track_times(plist.id(), false);
    return plist;
  }

  Hdf5Handle create(hid_t parent, const char* name, hid_t type, hid_t space, hid_t plist) {
    Hdf5Handle dataset(H5Dcreate2(parent, name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT),
                       H5Dclose);
    require(dataset.valid());
    return dataset;
  }

  void require(bool good) const {
    if (!good) fail(target_, hdf5_error());
  }

  std::string target_;
  Hdf5Handle file_;
};

constexpr std::string_view kTemporaryStart = ".dmamba-", kTemporaryEnd = ".h5.tmp";

// The process of this machine that a temporary file belongs to.
std::optional<pid_t> owner_of(std::string_view name) {
  const std::string start = std::string(kTemporaryStart) + host_name() + "-";
  if (!name.starts_with(start) || !name.ends_with(kTemporaryEnd)) return std::nullopt;
  name.remove_prefix(start.size());
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), pid);
  return error == std::errc() && pid > 0 ? std::optional(pid) : std::nullopt;
}

// Removes what killed processes left: a conversion takes gigabytes.
void remove_abandoned(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const auto owner = owner_of(it->path().filename().string());
    if (!owner || ::kill(*owner, 0) == 0 || errno != ESRCH) continue;
    std::error_code ignored;
    fs::remove(it->path(), ignored);
  }
}

// Makes an empty file beside the target, so that a rename suffices, and opens it for writing. Taken
// by no other process: it is made only where there is none.
int make_temporary(const std::string& path, std::string* temporary) {
  static std::atomic<std::uint64_t> counter{0};
  const fs::path folder = fs::path(path).parent_path();
  remove_abandoned(folder);
  for (;;) {
    const std::string name = std::string(kTemporaryStart) + host_name() + "-" +
                             std::to_string(::getpid()) + "-" +
                             std::to_string(counter.fetch_add(1)) + std::string(kTemporaryEnd);
    *temporary = (folder / name).string();
    const int fd = ::open(temporary->c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) return fd;
    const int code = errno;
    if (code != EEXIST && code != EINTR) {
      temporary->clear();
      fail(path, std::generic_category().message(code));
    }
  }
}

class FileSink final : public FrameSink {
 public:
  FileSink(const std::string& path, int fd, std::int64_t offset)
      : path_(path), fd_(fd), offset_(offset), buffer_(kSinkRows * kFrameBytes) {}

  std::uint8_t* room(std::int64_t* count) override {
    *count = std::min(*count, kSinkRows);
    return buffer_.data();
  }

  void take(std::int64_t count) override {
    const std::uint8_t* bytes = buffer_.data();
    std::int64_t left = count * kFrameBytes;
    while (left > 0) {
      const ssize_t written = ::pwrite(fd_, bytes, left, offset_);
      if (written < 0) {
        if (errno == EINTR) continue;
        fail(path_, std::generic_category().message(errno));
      }
      bytes += written;
      offset_ += written;
      left -= written;
    }
  }

 private:
  std::string path_;
  int fd_;
  std::int64_t offset_;
  std::vector<std::uint8_t> buffer_;
};

}  // namespace

// The delegation makes the destructor clean up after a constructor that fails.
ConvertedFile::ConvertedFile(std::string path, const FrameStore::Columns& columns,
                             const Metadata& metadata, const std::string& fingerprint)
    : ConvertedFile(std::move(path)) {
  std::error_code error;
  fs::create_directories(fs::path(path_).parent_path(), error);
  if (error) fail(path_, "its folder cannot be made: " + error.message());
  fd_ = make_temporary(path_, &temporary_);
  const auto rows = static_cast<std::int64_t>(columns.rewards.size());
  // First all that the file will take: HDF5 cannot close a file for which there is no room.
  reserve(0, rows * (kFrameBytes + kColumnBytes) + kMetadataBytes);
  {
    const Hdf5Session session;
    Maker maker(path_, temporary_);
    maker.array("actions", H5T_STD_I32LE, H5T_NATIVE_INT32, columns.actions.size(),
                columns.actions.data());
    maker.array("rewards", H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, columns.rewards.size(),
                columns.rewards.data());
    maker.array("episode_ends", H5T_STD_I64LE, H5T_NATIVE_INT64, columns.episode_ends.size(),
                columns.episode_ends.data());
    maker.array("terminated", H5T_STD_U8LE, H5T_NATIVE_UINT8, columns.terminated.size(),
                columns.terminated.data());
    maker.strings(kMetadata, metadata);
    maker.strings(kConversion, {{"version", kConversionVersion},
                                {"dropped", std::to_string(columns.dropped)},
                                {"fingerprint", fingerprint}});
    offset_ = maker.frames(rows);
    maker.close();
  }
  reserve(offset_, rows * kFrameBytes);
}

// Takes the room on the disk now: a full one is told before minutes of inflating.
void ConvertedFile::reserve(std::int64_t offset, std::int64_t bytes) {
  int code = 0;
  do {
    code = ::fallocate(fd_, 0, offset, bytes) == 0 ? 0 : errno;
  } while (code == EINTR);
  if (code == ENOSPC || code == EFBIG || code == EDQUOT) {
    fail(path_, std::generic_category().message(code) + " (" + std::to_string(bytes) +
                    " bytes are needed)");
  }
  // Other codes: a file system that cannot reserve. Then writing tells.
}

ConvertedFile::~ConvertedFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

std::unique_ptr<FrameSink> ConvertedFile::sink(std::int64_t first_row) {
  return std::make_unique<FileSink>(path_, fd_, offset_ + first_row * kFrameBytes);
}

void ConvertedFile::commit() {
  // Some file systems report a failed write only here.
  if (::close(std::exchange(fd_, -1)) != 0) fail(path_, std::generic_category().message(errno));
  try {
    replace_file_atomically(temporary_, path_);
  } catch (const Error& error) {
    fail(path_, error.what());
  }
  temporary_.clear();
}

}  // namespace dmamba::data
