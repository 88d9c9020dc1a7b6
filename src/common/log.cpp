// The only file that knows spdlog; it is used header-only, and its symbols stay inside the library.
#include "dmamba/common/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <utility>

#include "dmamba/common/error.h"

namespace dmamba {
namespace {

constexpr std::array<std::pair<const char*, spdlog::level::level_enum>, 6> kLevels{
    {{"trace", spdlog::level::trace},
     {"debug", spdlog::level::debug},
     {"info", spdlog::level::info},
     {"warning", spdlog::level::warn},
     {"error", spdlog::level::err},
     {"off", spdlog::level::off}}};

/// Coloured on a terminal, unless NO_COLOR says otherwise (no-color.org).
spdlog::sink_ptr make_sink() {
  const char* plain = std::getenv("NO_COLOR");
  const bool colours = plain == nullptr || *plain == '\0';
  return std::make_shared<spdlog::sinks::stderr_color_sink_mt>(
      colours ? spdlog::color_mode::automatic : spdlog::color_mode::never);
}

// Kept out of spdlog's global registry, and never destroyed: a thread may log while the process
// ends.
spdlog::logger& logger() {
  static auto* const instance = new spdlog::logger("dmamba", make_sink());
  return *instance;
}

void write(spdlog::level::level_enum level, std::string_view message) {
  logger().log(level, spdlog::string_view_t(message.data(), message.size()));
}

}  // namespace

void set_log_level(const std::string& level) {
  for (const auto& [name, value] : kLevels) {
    if (level == name) {
      logger().set_level(value);
      return;
    }
  }
  throw ConfigError("log level '" + level +
                    "': unknown; allowed: trace, debug, info, warning, error, off");
}

std::string log_level() {
  for (const auto& [name, value] : kLevels) {
    if (logger().level() == value) return name;
  }
  throw Error("log level: spdlog's level has no name");
}

void log_debug(std::string_view message) { write(spdlog::level::debug, message); }
void log_info(std::string_view message) { write(spdlog::level::info, message); }
void log_warning(std::string_view message) { write(spdlog::level::warn, message); }

}  // namespace dmamba
