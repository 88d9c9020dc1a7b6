// Mutated files through the door that users come in by, in one process that must not die of any.
//
//   front_door SEED COUNT FOLDER...     mutations of the files in these folders
//
// It opens each as open_dataset or, with "converted" in the folder's name, open_replay does, and
// prints at its end how many were accepted, refused, and refused since the checking process died.
// Built without sanitizers: what is tried is that dmamba-check-file keeps what happens in it away.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "dmamba/common/error.h"
#include "dmamba/data/frame_store.h"
#include "dmamba/data/reader.h"

namespace {

namespace fs = std::filesystem;

struct Seed {
  std::string content;
  bool converted;
};

using Random = std::mt19937_64;

std::size_t below(Random* random, std::size_t bound) { return (*random)() % bound; }

void overwrite(std::string* text, std::size_t at, const void* bytes, std::size_t size) {
  if (text->empty()) return;
  at %= text->size();
  std::memcpy(text->data() + at, bytes, std::min(size, text->size() - at));
}

// One change: a bit, a byte, a number of 1 to 8 bytes that is awkward, a piece moved, cut or
// doubled.
void change(Random* random, std::string* text) {
  constexpr std::array<std::uint64_t, 12> kNumbers = {
      0,          1,           2,          255,         0xffff,     0xffffffff,
      0x7fffffff, 0x80000000u, 1ull << 60, ~0ull >> 1u, 1ull << 63, ~0ull};
  if (text->empty()) return;
  const std::size_t at = below(random, text->size());
  const std::size_t size = 1u << below(random, 4);
  switch (below(random, 8)) {
    case 0:
      (*text)[at] = static_cast<char>((*text)[at] ^ (1 << below(random, 8)));
      break;
    case 1:
    case 2:
      (*text)[at] = static_cast<char>((*random)());
      break;
    case 3:
    case 4: {
      const std::uint64_t number = kNumbers[below(random, kNumbers.size())];
      overwrite(text, at / size * size, &number, size);
      break;
    }
    case 5: {
      std::uint64_t number = 0;
      std::memcpy(&number, text->data() + at, std::min(sizeof number, text->size() - at));
      number += below(random, 64) - 32;
      overwrite(text, at, &number, size);
      break;
    }
    case 6: {
      const std::string piece = text->substr(below(random, text->size()), below(random, 64) + 1);
      overwrite(text, at, piece.data(), piece.size());
      break;
    }
    default:
      if (below(random, 8) == 0) {
        text->resize(at);
      } else {
        text->insert(at, text->substr(below(random, text->size()), below(random, 16) + 1));
      }
  }
}

std::vector<Seed> read_seeds(int count, char** folders) {
  std::vector<Seed> seeds;
  for (int i = 0; i < count; ++i) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folders[i])) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    const bool converted = fs::path(folders[i]).string().find("converted") != std::string::npos;
    for (const fs::path& path : files) {
      std::ifstream file(path, std::ios::binary);
      seeds.push_back({{std::istreambuf_iterator<char>(file), {}}, converted});
    }
  }
  return seeds;
}

void use(const std::string& path, bool converted) {
  using namespace dmamba::data;
  if (!converted) {
    const auto store = open_dataset(path);
    std::vector<float> states(store->num_transitions() * store->state_dim());
    store->read(0, store->num_transitions(), states.data(), nullptr, nullptr, nullptr);
    return;
  }
  const auto store = open_replay(path, {});
  const auto frames = store->frames();
  static volatile std::uint64_t sum;
  sum = std::accumulate(frames.begin(), frames.end(), std::uint64_t{0});
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) return 2;
  Random random(std::strtoull(arguments[1], nullptr, 10));
  const long inputs = std::strtol(arguments[2], nullptr, 10);
  const std::vector<Seed> seeds = read_seeds(count - 3, arguments + 3);
  const std::string path = fs::absolute("front_door-" + std::string(arguments[1])).string();
  long accepted = 0;
  long died = 0;
  for (long i = 0; i < inputs; ++i) {
    if (i % 1000 == 0) std::printf("progress %ld\n", i), std::fflush(stdout);
    const Seed& seed = seeds[below(&random, seeds.size())];
    std::string text = seed.content;
    for (std::size_t n = below(&random, 6) + 1; n > 0; --n) change(&random, &text);
    std::ofstream(path, std::ios::binary).write(text.data(), std::ssize(text));
    try {
      use(path, seed.converted);
      ++accepted;
    } catch (const dmamba::DataError& error) {
      if (std::strstr(error.what(), "a process that read it") == nullptr) continue;
      const std::string kept = path + "-died-" + std::to_string(died++);
      if (died <= 20) std::ofstream(kept, std::ios::binary).write(text.data(), std::ssize(text));
      if (died <= 20) std::ofstream(kept + ".txt") << error.what() << '\n';
    }
  }
  fs::remove(path);
  std::printf("inputs %ld accepted %ld refused %ld checker_died %ld\n", inputs, accepted,
              inputs - accepted, died);
  return 0;
}
