// See hdf5_rows.h.
#include "data/readers/hdf5_rows.h"

#include <hdf5.h>

#include <utility>

#include "dmamba/common/error.h"

namespace dmamba::data {

Hdf5Rows::Hdf5Rows(const Hdf5File& file, std::string name) : file_(file), name_(std::move(name)) {
  const Hdf5Session session;
  dataset_ = file.open_dataset(name_);
  info_ = file.describe(name_, dataset_.id());
  file.check_storage(name_, dataset_.id(), info_);
  const Hdf5Handle plist(H5Dget_create_plist(dataset_.id()), H5Pclose);
  std::vector<hsize_t> chunk(info_.shape.size());
  const int rank = static_cast<int>(chunk.size());
  if (H5Pget_layout(plist.id()) == H5D_CHUNKED &&
      H5Pget_chunk(plist.id(), rank, chunk.data()) == rank) {
    chunk_rows_ = static_cast<std::int64_t>(chunk.front());
  }
}

Hdf5Rows::~Hdf5Rows() {
  const Hdf5Session session;
  dataset_ = Hdf5Handle();
}

std::optional<std::uint64_t> Hdf5Rows::float_offset() const {
  require_float_type(file_.path(), name_, info_);
  const Hdf5Session session;
  const Hdf5Handle type(H5Dget_type(dataset_.id()), H5Tclose);
  const haddr_t offset = H5Dget_offset(dataset_.id());
  if (chunk_rows_ > 1 || offset == HADDR_UNDEF || H5Tequal(type.id(), H5T_NATIVE_FLOAT) <= 0) {
    return std::nullopt;
  }
  return offset;
}

void Hdf5Rows::floats(std::int64_t first, std::int64_t count, float* out) const {
  require_float_type(file_.path(), name_, info_);
  read(first, count, H5T_NATIVE_FLOAT, out);
}

std::vector<std::uint8_t> Hdf5Rows::flags(std::int64_t first, std::int64_t count) const {
  require_flag_type(file_.path(), name_, info_);
  std::vector<std::int16_t> values(static_cast<std::size_t>(count));
  read(first, count, H5T_NATIVE_INT16, values.data());
  return as_flags(file_.path(), name_, values, first);
}

void Hdf5Rows::read(std::int64_t first, std::int64_t count, std::int64_t type, void* out) const {
  const Hdf5Session session;
  std::vector<hsize_t> start(info_.shape.size(), 0);
  std::vector<hsize_t> extent(info_.shape.begin(), info_.shape.end());
  start.front() = static_cast<hsize_t>(first);
  extent.front() = static_cast<hsize_t>(count);
  const Hdf5Handle space(H5Dget_space(dataset_.id()), H5Sclose);
  const Hdf5Handle memory(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr),
                          H5Sclose);
  if (H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start.data(), nullptr, extent.data(),
                          nullptr) < 0 ||
      H5Dread(dataset_.id(), type, memory.id(), space.id(), H5P_DEFAULT, out) < 0) {
    const std::string reason = hdf5_error();
    throw DataError(file_.path() + ": dataset '" + name_ + "' cannot be read: " + reason +
                    "; the file is damaged");
  }
}

}  // namespace dmamba::data
