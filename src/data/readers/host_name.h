// What this machine is called, in the names and the text of files that other machines see.
#pragma once

#include <unistd.h>

#include <array>
#include <string>

namespace dmamba::data {

inline std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

}  // namespace dmamba::data
