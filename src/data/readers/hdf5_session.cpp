// The HDF5 lock, its error stack, and the diagnosis of truncated files.
#include "data/readers/hdf5_session.h"

#include <hdf5.h>

#include <algorithm>
#include <cstdio>
#include <type_traits>
#include <vector>

namespace dmamba::data {
namespace {

static_assert(std::is_same_v<hid_t, std::int64_t>, "HDF5 1.10 or later is needed");
static_assert(std::is_same_v<herr_t, int>);

std::mutex& hdf5_mutex() {
  static std::mutex mutex;
  return mutex;
}

extern "C" herr_t keep_innermost_message(unsigned n, const H5E_error2_t* error, void* text) {
  if (n == 0 && error->desc != nullptr) {
    *static_cast<std::string*>(text) = error->desc;
  }
  return 0;
}

struct Names {
  std::vector<std::string>* list;
  std::uint64_t most;
};

extern "C" herr_t add_name(hid_t, const char* name, const H5L_info_t*, void* data) {
  const auto* names = static_cast<Names*>(data);
  if (names->list->size() >= names->most) return -1;
  names->list->emplace_back(name);
  return 0;
}

extern "C" herr_t refuse_link(const char*, const char*, const char*, const char*, unsigned*, hid_t,
                              void*) {
  return -1;
}

// How much of a dataset's stored pieces (its chunks, or its one contiguous block) the file lacks.
struct Loss {
  std::uint64_t pieces = 0;
  std::uint64_t missing_pieces = 0;
  std::uint64_t missing_bytes = 0;

  void add(std::uint64_t begin, std::uint64_t size, std::uint64_t file_size) {
    ++pieces;
    if (begin + size > file_size) {
      ++missing_pieces;
      missing_bytes += begin + size - std::max(begin, file_size);
    }
  }

  std::string text() const {
    if (missing_pieces == 0) {
      return "";
    }
    std::string text = std::to_string(missing_bytes) + " bytes short";
    if (pieces > 1) {
      text += ", " + std::to_string(missing_pieces) + " of " + std::to_string(pieces) + " chunks";
    }
    return text;
  }
};

std::string chunk_loss(hid_t dataset, const Truncation& truncation) {
  // Looking a chunk up by its index walks the index from its start: too many are not worth it.
  constexpr hsize_t kMostChunks = 10000;
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose);
  hsize_t chunks = 0;
  if (H5Dget_num_chunks(dataset, space.id(), &chunks) < 0 || chunks == 0) {
    return "the index of its chunks is lost";
  }
  Loss loss;
  for (hsize_t i = 0; i < chunks && chunks <= kMostChunks; ++i) {
    hsize_t offset[H5S_MAX_RANK];
    unsigned filter_mask = 0;
    haddr_t address = 0;
    hsize_t size = 0;
    if (H5Dget_chunk_info(dataset, space.id(), i, offset, &filter_mask, &address, &size) >= 0) {
      loss.add(truncation.base_address + address, size, truncation.actual_bytes);
    }
  }
  return loss.text();
}

// What the dataset has lost, in words; empty if nothing that can be told.
std::string dataset_loss(hid_t dataset, const Truncation& truncation) {
  const Hdf5Handle plist(H5Dget_create_plist(dataset), H5Pclose);
  const H5D_layout_t layout = plist.valid() ? H5Pget_layout(plist.id()) : H5D_LAYOUT_ERROR;
  if (layout == H5D_CHUNKED) {
    return chunk_loss(dataset, truncation);
  }
  const haddr_t address = layout == H5D_CONTIGUOUS ? H5Dget_offset(dataset) : HADDR_UNDEF;
  Loss loss;
  if (address != HADDR_UNDEF) {
    loss.add(address, H5Dget_storage_size(dataset), truncation.actual_bytes);
  }
  return loss.text();
}

// Appends "path (loss)" for each object below `group` that has lost something.
void list_losses(hid_t group, const std::string& prefix, int depth, const Truncation& truncation,
                 std::vector<std::string>* losses) {
  constexpr int kDeepest = 8;  // links may form a ring
  const Hdf5Handle within = within_file();
  std::vector<std::string> names;
  list_names(group, truncation.actual_bytes, &names);
  for (const std::string& name : names) {
    const std::string path = prefix + name;
    const Hdf5Handle object(H5Oopen(group, name.c_str(), within.id()), H5Oclose);
    const H5I_type_t type = object.valid() ? H5Iget_type(object.id()) : H5I_BADID;
    if (type == H5I_DATASET) {
      const std::string loss = dataset_loss(object.id(), truncation);
      if (!loss.empty()) {
        losses->push_back(path + " (" + loss + ")");
      }
    } else if (type == H5I_GROUP && depth < kDeepest) {
      list_losses(object.id(), path + "/", depth + 1, truncation, losses);
    } else if (!object.valid()) {
      losses->push_back(path + " (its header is lost)");
    }
  }
}

}  // namespace

Hdf5Session::Hdf5Session() : lock_(hdf5_mutex()) {
  H5Eget_auto2(H5E_DEFAULT, &saved_printer_, &saved_printer_data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  H5PLget_loading_state(&saved_plugins_);
  H5PLset_loading_state(0);
}

Hdf5Session::~Hdf5Session() {
  H5PLset_loading_state(saved_plugins_);
  H5Eset_auto2(H5E_DEFAULT, saved_printer_, saved_printer_data_);
}

Hdf5Handle within_file() {
  Hdf5Handle access(H5Pcreate(H5P_GROUP_ACCESS), H5Pclose);
  H5Pset_elink_cb(access.id(), refuse_link, nullptr);
  return access;
}

bool list_names(std::int64_t group, std::uint64_t most, std::vector<std::string>* names) {
  Names all{names, most};
  return H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, nullptr, add_name, &all) >= 0;
}

std::string hdf5_error() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost_message, &text);
  return text.empty() ? "HDF5 gives no reason" : text;
}

bool parse_truncation(const std::string& message, Truncation* truncation) {
  unsigned long long eof = 0;
  unsigned long long base = 0;
  unsigned long long stored = 0;
  // NOLINTNEXTLINE(*-unchecked-string-to-number-conversion): numbers that HDF5 has printed
  if (std::sscanf(message.c_str(),
                  "truncated file: eof = %llu, sblock->base_addr = %llu, stored_eof = %llu", &eof,
                  &base, &stored) != 3) {
    return false;
  }
  *truncation = {.actual_bytes = eof, .expected_bytes = base + stored, .base_address = base};
  return true;
}

std::string describe_incomplete_datasets(const std::string& path, const Truncation& truncation) {
  // HDF5's own recovery tool opens damaged files by this property; what lies beyond the end then
  // reads as zeros, so a lost header makes an open fail and nothing worse.
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  hbool_t skip = 1;
  if (H5Pset(access.id(), "skip_eof_check", &skip) < 0) {
    return "";
  }
  const Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()), H5Fclose);
  if (!file.valid()) {
    return "";
  }
  constexpr std::size_t kMostNamed = 8;
  std::vector<std::string> losses;
  list_losses(file.id(), "", 0, truncation, &losses);
  std::string text;
  for (std::size_t i = 0; i < losses.size() && i < kMostNamed; ++i) {
    text += (i == 0 ? "" : ", ") + losses[i];
  }
  if (losses.size() > kMostNamed) {
    text += " and " + std::to_string(losses.size() - kMostNamed) + " more";
  }
  return text;
}

}  // namespace dmamba::data
