// Names of the configuration's keys: all of them, the one that was meant, the one that a bare name
// stands for.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dmamba::config {

/// Dotted keys of all values ("seed", "training.steps", ...), in the order of the table.
const std::vector<std::string>& all_keys();

/// What to say of the unknown dotted key `key`: "unknown; did you mean 'training.steps'?" where one
/// of `keys` is close, otherwise "unknown; allowed: ..." with those of the key's section.
std::string explain_unknown(std::string_view key, const std::vector<std::string>& keys);

/// The dotted key that `name` stands for: itself, or the only one whose last part it is. Throws
/// ConfigError("key '...': ...") where there is none or more than one.
std::string resolve_key(std::string_view name, const std::vector<std::string>& keys);

}  // namespace dmamba::config
