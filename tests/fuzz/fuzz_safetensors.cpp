// Safetensors. What is accepted is written again, which must give a file of the same tensors.
#include <cstring>

#include "dmamba/common/error.h"
#include "dmamba/train/safetensors.h"
#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace dmamba::train;
  static dmamba::fuzz::MemoryFile file("input.safetensors");
  file.fill(data, size);
  try {
    const SafetensorsFile tensors = SafetensorsFile::open(file.path());
    std::size_t bytes = 0;
    for (const std::string& name : tensors.names()) {
      const TensorBlob& blob = tensors.find(name);
      std::vector<char> copy(blob.bytes);
      if (blob.bytes > 0) std::memcpy(copy.data(), blob.data, blob.bytes);
      bytes += blob.bytes;
    }
    dmamba::fuzz::require(bytes <= size);
  } catch (const dmamba::CheckpointError&) {
  }
  return 0;
}
