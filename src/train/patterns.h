// Patterns of parameters' names in the configuration.
#pragma once

#include <string>
#include <vector>

namespace dmamba::train {

/// Whether the pattern (`*`, `?`, `[...]`) is that of the whole name; dots are like other letters.
bool matches(const std::string& pattern, const std::string& name);

/// Which of the names match one of the patterns. Throws ConfigError naming `key` for a pattern that
/// matches none of them.
std::vector<bool> match_all(const std::string& key, const std::vector<std::string>& patterns,
                            const std::vector<std::string>& names);

}  // namespace dmamba::train
