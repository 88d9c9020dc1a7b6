// The checksum by which files of ours tell a changed bit.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace dmamba::train {

/// CRC-32 (zlib's) of the pieces, one after the other, as eight hexadecimal digits.
std::string checksum_of(std::span<const std::string_view> pieces);

/// What an error says of a file with another checksum than it names.
std::string other_checksum(const std::string& found, const std::string& named);

}  // namespace dmamba::train
