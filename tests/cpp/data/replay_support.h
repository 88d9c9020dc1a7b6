// Recordings in the DQN-replay layout, made to order.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "dmamba/data/frame_store.h"
#include "test_support.h"

namespace dmamba::data::testing {

/// One gzip member.
inline std::string gzip(const std::string& bytes, int level = 6) {
  z_stream zlib{};
  EXPECT_EQ(deflateInit2(&zlib, level, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&zlib, bytes.size()) + 64, '\0');
  zlib.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  zlib.avail_in = static_cast<uInt>(bytes.size());
  zlib.next_out = reinterpret_cast<Bytef*>(out.data());
  zlib.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&zlib, Z_FINISH), Z_STREAM_END);
  out.resize(zlib.total_out);
  deflateEnd(&zlib);
  return out;
}

inline std::string npy_header(const std::string& dictionary, int version = 1) {
  std::string text = "\x93NUMPY" + std::string{static_cast<char>(version), '\0'};
  const std::string body = dictionary + std::string(20, ' ') + "\n";
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) {
    text += static_cast<char>(body.size() >> (8 * i) & 255);
  }
  return text + body;
}

inline std::string npy_header(const std::string& dtype, const std::string& shape, int version = 1) {
  return npy_header("{'descr': '" + dtype + "', 'fortran_order': False, 'shape': " + shape + ", }",
                    version);
}

template <typename T>
std::string as_bytes(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

template <typename T>
std::string column(const std::string& dtype, const std::vector<T>& values, int version = 1) {
  return npy_header(dtype, "(" + std::to_string(values.size()) + ",)", version) + as_bytes(values);
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Rows of a shard. A row's frame is filled with its mark.
struct Rows {
  std::vector<std::uint8_t> marks;
  std::vector<std::int32_t> actions;
  std::vector<float> rewards;
  std::vector<std::uint8_t> terminals;

  Rows& add(int mark, int action, float reward, bool terminal = false) {
    marks.push_back(static_cast<std::uint8_t>(mark));
    actions.push_back(action);
    rewards.push_back(reward);
    terminals.push_back(terminal);
    return *this;
  }
  Rows& padding(int count = 3) {
    for (int i = 0; i < count; ++i) add(0, 0, 0.0f);
    return *this;
  }
  /// Frames first, first + 1, ...; actions 1 and 2 in turn, rewards 1, the last row terminal.
  Rows& episode(int first, int length, bool ends = true) {
    for (int t = 0; t < length; ++t) add(first + t, 1 + t % 2, 1.0f, ends && t == length - 1);
    return *this;
  }
  std::string frames() const {
    std::string bytes;
    for (const std::uint8_t mark : marks) {
      bytes += std::string(kFrameBytes, static_cast<char>(mark));
    }
    return bytes;
  }
};

inline std::string shard_path(const std::string& folder, const std::string& field, int number) {
  return folder + "/$store$_" + field + "_ckpt." + std::to_string(number) + ".gz";
}

inline void write_shard(const std::string& folder, int number, const Rows& rows) {
  const std::string shape = "(" + std::to_string(rows.marks.size()) + ", 84, 84)";
  write_bytes(shard_path(folder, "observation", number),
              gzip(npy_header("|u1", shape) + rows.frames()));
  write_bytes(shard_path(folder, "action", number), gzip(column("<i4", rows.actions)));
  write_bytes(shard_path(folder, "reward", number), gzip(column("<f4", rows.rewards)));
  write_bytes(shard_path(folder, "terminal", number), gzip(column("|u1", rows.terminals)));
}

/// Two padded episodes, of frames 10, 11, 12 and 20, 21.
inline Rows two_episodes() { return Rows().padding().episode(10, 3).padding().episode(20, 2); }

/// The marks of a store's frames; a frame that is not of one grey is an error.
inline std::vector<int> marks_of(const FrameStore& store) {
  std::vector<int> marks;
  for (std::int64_t row = 0; row < store.num_transitions(); ++row) {
    const auto frame = store.frames().subspan(row * kFrameBytes, kFrameBytes);
    for (const std::uint8_t grey : frame) {
      if (grey != frame.front()) ADD_FAILURE() << "frame " << row << " is of two recordings' rows";
    }
    marks.push_back(frame.front());
  }
  return marks;
}

inline std::vector<std::int64_t> ends_of(const FrameStore& store) {
  return {store.episode_ends().begin(), store.episode_ends().end()};
}

}  // namespace dmamba::data::testing
