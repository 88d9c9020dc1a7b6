// The library's log, on stderr. Used by data, training and evaluation, never per op or at import,
// and never together with an exception.
#pragma once

#include <string>
#include <string_view>

namespace dmamba {

/// Sets the least severe level that is shown: trace, debug, info, warning, error or off.
/// Throws ConfigError for another name. Thread-safe, as all functions here.
void set_log_level(const std::string& level);

/// The level in force, by the names above; "info" at first.
std::string log_level();

/// Write one line. The text is taken as it is: braces are no placeholders.
void log_debug(std::string_view message);
void log_info(std::string_view message);
void log_warning(std::string_view message);

}  // namespace dmamba
