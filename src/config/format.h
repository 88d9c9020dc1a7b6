// Numbers as text.
#pragma once

#include <cstdint>
#include <string>

namespace dmamba::config {

/// The shortest text that reads back to the same bits.
std::string format_number(double value);
std::string format_number(std::int64_t value);
std::string format_number(std::uint64_t value);

}  // namespace dmamba::config
