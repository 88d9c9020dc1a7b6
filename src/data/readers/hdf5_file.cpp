// Reading HDF5 through its C API: datasets whole, with the file's claims checked first.
#include "data/readers/hdf5_file.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "data/readers/readers.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

constexpr std::uint64_t kSaturated = std::numeric_limits<std::uint64_t>::max();
// Deflate cannot compress by more than this factor, other filters in use not by as much.
constexpr std::uint64_t kMostCompression = 1032;
constexpr std::size_t kLongestScalar = 64 * 1024;  // bytes of a metadata string

std::uint64_t saturating_product(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kSaturated : product;
}

std::uint64_t element_count(const std::vector<std::uint64_t>& shape) {
  std::uint64_t count = 1;
  for (const std::uint64_t extent : shape) {
    count = saturating_product(count, extent);
  }
  return count;
}

std::string dtype_name(hid_t type) {
  const std::string bits = std::to_string(8 * H5Tget_size(type));
  switch (H5Tget_class(type)) {
    case H5T_FLOAT:
      return "float" + bits;
    case H5T_INTEGER:
      return (H5Tget_sign(type) == H5T_SGN_NONE ? "uint" : "int") + bits;
    case H5T_ENUM:
      // numpy's bool, as h5py and PyTables write it, is an enumeration over a byte
      return H5Tget_size(type) == 1 ? "bool" : "enumeration" + bits;
    case H5T_STRING:
      return "string";
    case H5T_COMPOUND:
      return "compound";
    default:
      return "another type";
  }
}

bool is_integer(const DatasetInfo& info) {
  return info.dtype.starts_with("int") || info.dtype.starts_with("uint");
}

// What chunks take up once decompressed, edge chunks in full, and how many there should be.
struct Chunks {
  std::uint64_t expected;
  std::uint64_t present;
  std::uint64_t bytes;
};

std::optional<Chunks> inspect_chunks(hid_t dataset, hid_t plist, std::size_t element_size,
                                     const std::vector<std::uint64_t>& shape) {
  std::vector<hsize_t> extents(shape.size());
  // 1.10 takes no H5S_ALL here
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose);
  hsize_t present = 0;
  const int rank = static_cast<int>(shape.size());
  if (H5Pget_chunk(plist, rank, extents.data()) != rank ||
      H5Dget_num_chunks(dataset, space.id(), &present) < 0) {
    return std::nullopt;
  }
  std::uint64_t expected = 1;
  std::uint64_t chunk_bytes = element_size;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::uint64_t extent = extents[i];
    expected = saturating_product(expected, shape[i] / extent + (shape[i] % extent != 0));
    chunk_bytes = saturating_product(chunk_bytes, extent);
  }
  return Chunks{expected, present, saturating_product(present, chunk_bytes)};
}

// The first filter of a dataset that is none of those which files of this kind are written with.
// Others are code that hardly anybody needs, or plugins.
std::optional<std::string> unknown_filter(hid_t plist) {
  for (int i = 0; i < H5Pget_nfilters(plist); ++i) {
    unsigned flags = 0;
    unsigned config = 0;
    std::size_t values = 0;
    std::array<char, 64> name{};
    const H5Z_filter_t filter = H5Pget_filter2(plist, static_cast<unsigned>(i), &flags, &values,
                                               nullptr, name.size() - 1, name.data(), &config);
    if (filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_SHUFFLE &&
        filter != H5Z_FILTER_FLETCHER32) {
      return std::to_string(filter) + " '" + printable(name.data()) + "'";
    }
  }
  return std::nullopt;
}

std::optional<std::string> read_string(hid_t dataset, hid_t type) {
  const Hdf5Handle memory_type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_cset(memory_type.id(), H5Tget_cset(type));
  if (H5Tis_variable_str(type) > 0) {
    H5Tset_size(memory_type.id(), H5T_VARIABLE);
    char* text = nullptr;
    if (H5Dread(dataset, memory_type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT,
                static_cast<void*>(&text)) < 0) {
      return std::nullopt;
    }
    std::string result = text != nullptr ? text : "";
    H5free_memory(text);
    return result;
  }
  const std::size_t size = H5Tget_size(type);
  if (size > kLongestScalar) {
    return std::nullopt;
  }
  H5Tset_size(memory_type.id(), size + 1);  // one more for the terminating zero
  std::vector<char> text(size + 1, '\0');
  if (H5Dread(dataset, memory_type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()) < 0) {
    return std::nullopt;
  }
  return std::string(text.data());
}

std::optional<std::string> read_scalar(hid_t dataset) {
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose);
  const Hdf5Handle type(H5Dget_type(dataset), H5Tclose);
  if (H5Sget_simple_extent_type(space.id()) != H5S_SCALAR) {
    return std::nullopt;
  }
  switch (H5Tget_class(type.id())) {
    case H5T_STRING:
      return read_string(dataset, type.id());
    case H5T_INTEGER: {
      long long value = 0;
      if (H5Dread(dataset, H5T_NATIVE_LLONG, H5S_ALL, H5S_ALL, H5P_DEFAULT, &value) < 0) {
        return std::nullopt;
      }
      return std::to_string(value);
    }
    case H5T_FLOAT: {
      double value = 0.0;
      if (H5Dread(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, &value) < 0) {
        return std::nullopt;
      }
      return std::to_string(value);
    }
    default:
      return std::nullopt;
  }
}

}  // namespace

std::string DatasetInfo::shape_text() const {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

void require_float_type(const std::string& path, const std::string& name, const DatasetInfo& info) {
  if (info.dtype == "float32" || info.dtype == "float64") return;
  throw DataError(path + ": " + name + " must be float32 or float64, got " + info.dtype);
}

void require_flag_type(const std::string& path, const std::string& name, const DatasetInfo& info) {
  if (info.dtype == "bool" || info.dtype == "uint8" || info.dtype == "int8") return;
  throw DataError(path + ": " + name + " must be bool, uint8 or int8, got " + info.dtype);
}

std::vector<std::uint8_t> as_flags(const std::string& path, const std::string& name,
                                   const std::vector<std::int16_t>& values,
                                   std::int64_t first_row) {
  const auto bad = std::find_if(values.begin(), values.end(),
                                [](std::int16_t value) { return value != 0 && value != 1; });
  if (bad != values.end()) {
    throw DataError(path + ": " + name + " row " +
                    std::to_string(first_row + (bad - values.begin())) + " is " +
                    std::to_string(*bad) + "; flags must be 0 or 1");
  }
  return {values.begin(), values.end()};
}

Hdf5File::Hdf5File(std::string path) : path_(std::move(path)) {
  file_size_ = require_readable_file(path_);
  const Hdf5Session session;
  if (H5Fis_hdf5(path_.c_str()) <= 0) {
    throw DataError(path_ + ": not an HDF5 file: it begins with " + file_beginning(path_));
  }
  file_ = Hdf5Handle(H5Fopen(path_.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  if (file_.valid()) {
    return;
  }
  const std::string reason = hdf5_error();
  Truncation truncation{};
  if (!parse_truncation(reason, &truncation)) {
    throw DataError(path_ + ": cannot be opened as HDF5: " + reason);
  }
  std::string message =
      path_ + ": the file is truncated: it has " + std::to_string(truncation.actual_bytes) +
      " of " + std::to_string(truncation.expected_bytes) + " bytes (" +
      std::to_string(truncation.expected_bytes - truncation.actual_bytes) + " missing)";
  const std::string datasets = describe_incomplete_datasets(path_, truncation);
  if (!datasets.empty()) {
    message += "; incomplete: " + datasets;
  }
  throw DataError(message + "; download or copy it again");
}

Hdf5File::~Hdf5File() {
  const Hdf5Session session;
  file_ = Hdf5Handle();
}

std::vector<std::string> Hdf5File::names(const std::string& group) const {
  const Hdf5Session session;
  std::vector<std::string> result;
  const Hdf5Handle object(H5Gopen2(file_.id(), group.c_str(), within_file().id()), H5Gclose);
  H5G_info_t info{};
  if (!object.valid() || H5Gget_info(object.id(), &info) < 0) {
    return result;
  }
  // A link takes more than 8 bytes: a file that claims more leads in a circle.
  if (info.nlinks > file_size_ / 8 || !list_names(object.id(), file_size_ / 8, &result)) {
    throw DataError(path_ + ": the list of names in '" + group + "' is damaged");
  }
  return result;
}

std::uint64_t Hdf5File::count(const std::string& group) const {
  const Hdf5Session session;
  const Hdf5Handle object(H5Gopen2(file_.id(), group.c_str(), within_file().id()), H5Gclose);
  H5G_info_t info{};
  return object.valid() && H5Gget_info(object.id(), &info) >= 0 ? info.nlinks : 0;
}

Hdf5Handle Hdf5File::open_dataset(const std::string& name) const {
  const Hdf5Handle within = within_file();
  Hdf5Handle object(H5Oopen(file_.id(), name.c_str(), within.id()), H5Oclose);
  if (!object.valid()) {
    throw DataError(path_ + ": dataset '" + name + "' cannot be opened: " + hdf5_error());
  }
  if (H5Iget_type(object.id()) != H5I_DATASET) {
    throw DataError(path_ + ": '" + name + "' must be a dataset, but is a group");
  }
  return object;
}

DatasetInfo Hdf5File::describe(const std::string& name, std::int64_t dataset) const {
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose);
  const Hdf5Handle type(H5Dget_type(dataset), H5Tclose);
  const int rank = H5Sget_simple_extent_ndims(space.id());
  if (!space.valid() || !type.valid() || rank < 0) {
    throw DataError(path_ + ": the header of dataset '" + name + "' is damaged");
  }
  std::vector<hsize_t> extents(rank);
  H5Sget_simple_extent_dims(space.id(), extents.data(), nullptr);
  return {.shape = {extents.begin(), extents.end()}, .dtype = dtype_name(type.id())};
}

void Hdf5File::check_storage(const std::string& name, std::int64_t dataset,
                             const DatasetInfo& info) const {
  const std::string prefix = path_ + ": dataset '" + name + "' of shape " + info.shape_text() + " ";
  const Hdf5Handle plist(H5Dget_create_plist(dataset), H5Pclose);
  const Hdf5Handle type(H5Dget_type(dataset), H5Tclose);
  const H5D_layout_t layout = H5Pget_layout(plist.id());
  if (layout == H5D_VIRTUAL || H5Pget_external_count(plist.id()) > 0) {
    throw DataError(prefix + "keeps its data in other files; copy it into one file with h5repack");
  }
  const std::size_t element_size = H5Tget_size(type.id());
  std::uint64_t needed = saturating_product(element_count(info.shape), element_size);
  if (needed == 0) {
    return;
  }
  const std::uint64_t stored = H5Dget_storage_size(dataset);
  if (stored == 0) {
    throw DataError(prefix + "was declared but never written (0 bytes are stored)");
  }
  std::uint64_t limit = std::min(stored, file_size_);
  if (layout == H5D_CHUNKED) {
    const auto chunks = inspect_chunks(dataset, plist.id(), element_size, info.shape);
    if (!chunks) {
      throw DataError(prefix + "has a damaged chunk index");
    }
    if (chunks->present < chunks->expected) {
      throw DataError(prefix + "was not written to its end: it has " +
                      std::to_string(chunks->present) + " of " + std::to_string(chunks->expected) +
                      " chunks");
    }
    needed = std::max(needed, chunks->bytes);
    if (const auto filter = unknown_filter(plist.id())) {
      throw DataError(prefix + "is packed with the filter " + *filter +
                      "; only gzip, shuffle and fletcher32 are read: h5repack -f GZIP=4 " +
                      "OLD NEW writes such a file");
    }
    if (H5Pget_nfilters(plist.id()) > 0) {
      limit = saturating_product(limit, kMostCompression);
    }
  }
  if (stored > file_size_ || needed > limit) {
    throw DataError(prefix + "needs " +
                    (needed == kSaturated ? "over 2^64" : std::to_string(needed)) +
                    " bytes, but claims " + std::to_string(stored) + " stored bytes in a file of " +
                    std::to_string(file_size_) + "; the file is damaged");
  }
}

DatasetInfo Hdf5File::info(const std::string& name) const {
  const Hdf5Session session;
  const Hdf5Handle dataset = open_dataset(name);
  DatasetInfo result = describe(name, dataset.id());
  check_storage(name, dataset.id(), result);
  return result;
}

void Hdf5File::read_all(const std::string& name, std::int64_t dataset, std::int64_t type,
                        void* out) const {
  if (H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) < 0) {
    const std::string reason = hdf5_error();
    throw DataError(path_ + ": dataset '" + name + "' cannot be read: " + reason +
                    "; the file is damaged");
  }
}

std::vector<float> Hdf5File::read_floats(const std::string& name) const {
  const Hdf5Session session;
  const Hdf5Handle dataset = open_dataset(name);
  const DatasetInfo info = describe(name, dataset.id());
  require_float_type(path_, name, info);
  check_storage(name, dataset.id(), info);
  std::vector<float> values(element_count(info.shape));
  read_all(name, dataset.id(), H5T_NATIVE_FLOAT, values.data());
  return values;
}

Numbers Hdf5File::read_numbers(const std::string& name) const {
  const Hdf5Session session;
  const Hdf5Handle dataset = open_dataset(name);
  DatasetInfo info = describe(name, dataset.id());
  if (!info.dtype.starts_with("float") && !is_integer(info)) {
    throw DataError(path_ + ": " + name + " must be numbers, got " + info.dtype);
  }
  check_storage(name, dataset.id(), info);
  std::vector<float> values(element_count(info.shape));
  read_all(name, dataset.id(), H5T_NATIVE_FLOAT, values.data());
  return {.info = std::move(info), .values = std::move(values)};
}

std::vector<std::uint8_t> Hdf5File::read_flags(const std::string& name) const {
  const Hdf5Session session;
  const Hdf5Handle dataset = open_dataset(name);
  const DatasetInfo info = describe(name, dataset.id());
  require_flag_type(path_, name, info);
  check_storage(name, dataset.id(), info);
  // int16 holds both int8 and uint8: HDF5 would clip -1 to 0 on its way into a uint8.
  std::vector<std::int16_t> values(element_count(info.shape));
  read_all(name, dataset.id(), H5T_NATIVE_INT16, values.data());
  return as_flags(path_, name, values, 0);
}

std::vector<std::int64_t> Hdf5File::read_integers(const std::string& name) const {
  const Hdf5Session session;
  const Hdf5Handle dataset = open_dataset(name);
  const DatasetInfo info = describe(name, dataset.id());
  if (!is_integer(info)) {
    throw DataError(path_ + ": " + name + " must be of integers, got " + info.dtype);
  }
  check_storage(name, dataset.id(), info);
  std::vector<std::int64_t> values(element_count(info.shape));
  read_all(name, dataset.id(), H5T_NATIVE_INT64, values.data());
  return values;
}

std::uint64_t Hdf5File::contiguous_offset(const std::string& name) const {
  const Hdf5Session session;
  const Hdf5Handle dataset = open_dataset(name);
  check_storage(name, dataset.id(), describe(name, dataset.id()));
  const Hdf5Handle plist(H5Dget_create_plist(dataset.id()), H5Pclose);
  const haddr_t offset = H5Dget_offset(dataset.id());
  const std::uint64_t stored = H5Dget_storage_size(dataset.id());
  if (H5Pget_layout(plist.id()) != H5D_CONTIGUOUS || offset == HADDR_UNDEF || offset > file_size_ ||
      stored > file_size_ - offset) {
    throw DataError(path_ + ": dataset '" + name +
                    "' does not lie in the file in one piece; the file is damaged or of another "
                    "program");
  }
  return offset;
}

std::map<std::string, std::string> Hdf5File::read_scalars(const std::string& group) const {
  std::map<std::string, std::string> result;
  for (const std::string& name : names(group)) {
    const Hdf5Session session;
    const std::string full_name = group + "/" + name;
    const Hdf5Handle object(H5Oopen(file_.id(), full_name.c_str(), within_file().id()), H5Oclose);
    if (!object.valid() || H5Iget_type(object.id()) != H5I_DATASET) {
      continue;
    }
    if (auto text = read_scalar(object.id())) {
      result.emplace(name, std::move(*text));
    }
  }
  return result;
}

}  // namespace dmamba::data
