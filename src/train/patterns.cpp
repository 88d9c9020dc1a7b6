// POSIX fnmatch does the matching.
#include "src/train/patterns.h"

#include <fnmatch.h>

#include <algorithm>

#include "dmamba/common/error.h"

namespace dmamba::train {

bool matches(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

std::vector<bool> match_all(const std::string& key, const std::vector<std::string>& patterns,
                            const std::vector<std::string>& names) {
  std::vector<bool> matching(names.size(), false);
  for (const std::string& pattern : patterns) {
    bool any = false;
    for (size_t i = 0; i < names.size(); ++i) {
      if (!matches(pattern, names[i])) continue;
      matching[i] = any = true;
    }
    if (any) continue;
    std::string known;
    for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
    throw ConfigError("key '" + key + "': '" + pattern +
                      "' matches no parameter of this model; it has " + known);
  }
  return matching;
}

}  // namespace dmamba::train
