// DQN-replay shards. The first byte says which of the four files of a shard the input stands for
// and whether it is the .gz itself or the .npy in it, which is then compressed here; the other
// three files are of a good shard.
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "data/readers/replay_reading.h"
#include "dmamba/common/error.h"
#include "memory_file.h"

namespace {

using namespace dmamba::data;

constexpr std::int64_t kRows = 5;

std::string gzip(const std::string& text) {
  z_stream zlib{};
  deflateInit2(&zlib, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&zlib, text.size()) + 32, '\0');
  zlib.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  zlib.avail_in = static_cast<uInt>(text.size());
  zlib.next_out = reinterpret_cast<Bytef*>(out.data());
  zlib.avail_out = static_cast<uInt>(out.size());
  deflate(&zlib, Z_FINISH);
  out.resize(zlib.total_out);
  deflateEnd(&zlib);
  return out;
}

std::string npy(const std::string& dtype, const std::string& shape, const std::string& values) {
  const std::string header =
      "{'descr': '" + dtype + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
  std::string text("\x93NUMPY\x01\x00", 8);
  text += static_cast<char>(header.size());
  text += '\0';
  return text + header + values;
}

std::array<std::string, 4> good_shard() {
  std::string terminals(kRows, '\0');
  terminals[3] = 1;
  std::string frames(kRows * kFrameBytes, '\7');
  std::fill_n(frames.begin(), 3 * kFrameBytes, '\0');  // padding
  std::string actions(4 * kRows, '\0');
  actions[4 * 3] = 2;
  actions[4 * 4] = 1;
  return {npy("|u1", "(5, 84, 84)", frames), npy("<i4", "(5,)", actions),
          npy("<f4", "(5,)", std::string(4 * kRows, '\0')), npy("|u1", "(5,)", terminals)};
}

class Memory final : public FrameStorage {
 public:
  explicit Memory(std::int64_t rows) : bytes_(rows * kFrameBytes) {}
  std::unique_ptr<FrameSink> sink(std::int64_t first_row) override {
    return std::make_unique<Sink>(bytes_.data() + first_row * kFrameBytes);
  }

 private:
  struct Sink final : FrameSink {
    explicit Sink(std::uint8_t* place) : out(place) {}
    std::uint8_t* room(std::int64_t*) override { return out; }
    void take(std::int64_t count) override { out += count * kFrameBytes; }
    std::uint8_t* out;
  };
  std::vector<std::uint8_t> bytes_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::array<std::string, 4> good = good_shard();
  static std::array<dmamba::fuzz::MemoryFile, 4> files{
      dmamba::fuzz::MemoryFile("observation"), dmamba::fuzz::MemoryFile("action"),
      dmamba::fuzz::MemoryFile("reward"), dmamba::fuzz::MemoryFile("terminal")};
  static const bool filled = [] {
    for (std::size_t i = 0; i < files.size(); ++i) {
      const std::string text = gzip(good[i]);
      files[i].fill(text.data(), text.size());
    }
    return true;
  }();
  if (size == 0 || !filled) return 0;
  const std::size_t field = data[0] & 3u;
  std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if ((data[0] & 4u) != 0) text = gzip(text);
  files[field].fill(text.data(), text.size());
  ReplayShard shard;
  for (std::size_t i = 0; i < files.size(); ++i) shard.files[i] = files[i].path();
  const Recording recording{"input", "Breakout", {shard}};
  try {
    const ReplaySelection all;
    const ReadProgress silent;
    ReplayReading reading(recording, all, silent);
    FrameStore::Columns columns = reading.read([](const FrameStore::Columns& planned) {
      return std::make_shared<Memory>(static_cast<std::int64_t>(planned.rewards.size()));
    });
    const auto rows = columns.rewards.size();
    dmamba::fuzz::require(columns.actions.size() == rows &&
                          columns.episode_ends.back() == static_cast<std::int64_t>(rows));
  } catch (const dmamba::DataError&) {
  }
  const std::string whole = gzip(good[field]);
  files[field].fill(whole.data(), whole.size());
  return 0;
}
