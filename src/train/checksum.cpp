// CRC-32 finds every change of up to 32 neighbouring bits, and all others but one in 2^32.
#include "src/train/checksum.h"

#include <zlib.h>

#include <cstdio>

namespace dmamba::train {

std::string checksum_of(std::span<const std::string_view> pieces) {
  uLong sum = crc32_z(0, nullptr, 0);
  for (const std::string_view piece : pieces) {
    if (piece.empty()) continue;  // without an address it would begin anew
    sum = crc32_z(sum, reinterpret_cast<const Bytef*>(piece.data()), piece.size());
  }
  char digits[9];
  std::snprintf(digits, sizeof(digits), "%08lx", sum);
  return digits;
}

std::string other_checksum(const std::string& found, const std::string& named) {
  return "does not hold what was written: its checksum is " + found + ", and was " + named +
         "; the file is damaged or was changed. Take another copy of it, or an older checkpoint";
}

}  // namespace dmamba::train
