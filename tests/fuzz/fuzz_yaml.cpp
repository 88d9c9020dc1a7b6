// Configurations as texts, and overrides. What is accepted must survive being written and read.
#include <string>

#include "dmamba/common/error.h"
#include "dmamba/config/yaml.h"
#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace dmamba::config;
  std::string text(reinterpret_cast<const char*>(data), size);
  try {
    Config config;
    if (text.starts_with('=')) {
      apply_overrides(config, {text.substr(1)});
    } else {
      config = parse_config(text, "input.yaml");
    }
    dmamba::fuzz::require(parse_config(to_yaml(config), "again.yaml") == config);
  } catch (const dmamba::ConfigError&) {
  }
  return 0;
}
