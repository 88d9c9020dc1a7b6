// What the data tests share: small stores, errors as text, HDF5 files made to order.
#pragma once

#include <gtest/gtest.h>
#include <hdf5.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dmamba/data/trajectory_store.h"
#include "tests/cpp/messages.h"

namespace dmamba::data::testing {

using messages::expect_contains;
using messages::message_of;

/// Episodes of these lengths, every second one ended by a timeout, then `partial` loose
/// transitions. state (2): row, 2 row; action (1): -row; reward: row + 1, with row counted over the
/// whole store.
inline TransitionArrays make_arrays(const std::vector<std::int64_t>& lengths,
                                    std::int64_t partial = 0) {
  TransitionArrays arrays;
  arrays.state_dim = 2;
  arrays.act_dim = 1;
  const auto rows = std::accumulate(lengths.begin(), lengths.end(), partial);
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto value = static_cast<float>(row);
    arrays.observations.insert(arrays.observations.end(), {value, 2 * value});
    arrays.actions.push_back(-value);
    arrays.rewards.push_back(value + 1);
  }
  arrays.terminals.assign(rows, 0);
  arrays.timeouts.assign(rows, 0);
  std::int64_t end = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    end += lengths[i];
    (i % 2 == 0 ? arrays.terminals : arrays.timeouts)[end - 1] = 1;
  }
  return arrays;
}

/// A folder of its own for each test, removed afterwards.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "dmamba-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) {
      throw std::runtime_error("no temporary folder " + pattern);
    }
    path_ = pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

/// How a dataset is laid out in the file.
struct Layout {
  std::vector<hsize_t> chunk = {};  ///< empty: contiguous
  bool gzip = false;
  std::optional<hsize_t> rows = {};  ///< rows to write; empty: all
  std::string external = {};         ///< file that takes the values instead
};

/// An HDF5 file under construction; closed with the object.
class Hdf5Writer {
 public:
  explicit Hdf5Writer(const std::string& path)
      : file_(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT)) {}
  ~Hdf5Writer() { H5Fclose(file_); }
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;

  template <typename T>
  void dataset(const std::string& name, const std::vector<hsize_t>& shape, hid_t file_type,
               hid_t memory_type, const std::vector<T>& values, const Layout& layout = {}) {
    const int rank = static_cast<int>(shape.size());
    const hid_t space = H5Screate_simple(rank, shape.data(), nullptr);
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    if (!layout.chunk.empty()) {
      H5Pset_chunk(plist, rank, layout.chunk.data());
    }
    if (layout.gzip) {
      H5Pset_deflate(plist, 9);
    }
    if (!layout.external.empty()) {
      H5Pset_external(plist, layout.external.c_str(), 0, H5F_UNLIMITED);
    }
    const hid_t set =
        H5Dcreate2(file_, name.c_str(), file_type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    EXPECT_GE(set, 0) << name;
    if (layout.rows.value_or(1) > 0) {
      std::vector<hsize_t> count = shape;
      count[0] = layout.rows.value_or(shape[0]);
      const std::vector<hsize_t> start(shape.size(), 0);
      const hid_t memory = H5Screate_simple(rank, count.data(), nullptr);
      H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr);
      EXPECT_GE(H5Dwrite(set, memory_type, memory, space, H5P_DEFAULT, values.data()), 0);
      H5Sclose(memory);
    }
    H5Dclose(set);
    H5Pclose(plist);
    H5Sclose(space);
  }

  void floats(const std::string& name, const std::vector<hsize_t>& shape,
              const std::vector<float>& values, const Layout& layout = {}) {
    dataset(name, shape, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, values, layout);
  }

  void flags(const std::string& name, const std::vector<hsize_t>& shape,
             const std::vector<std::int8_t>& values, const Layout& layout = {}) {
    dataset(name, shape, H5T_STD_I8LE, H5T_NATIVE_INT8, values, layout);
  }

  void group(const std::string& name) {
    H5Gclose(H5Gcreate2(file_, name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  }

  void remove(const std::string& name) { H5Ldelete(file_, name.c_str(), H5P_DEFAULT); }

  /// All five fields of four good transitions: one episode of 3 steps and one of 1.
  void good_fields() {
    floats("observations", {4, 2}, {0, 1, 2, 3, 4, 5, 6, 7});
    floats("actions", {4, 1}, {0, 1, 2, 3});
    floats("rewards", {4}, {1, 1, 1, 1});
    flags("terminals", {4}, {0, 0, 1, 0});
    flags("timeouts", {4}, {0, 0, 0, 1});
  }

 private:
  hid_t file_;
};

}  // namespace dmamba::data::testing
