// Document -> Config.
#pragma once

#include <string>

#include "config/document.h"
#include "dmamba/config/config.h"

namespace dmamba::config {

/// Sets the fields that the document's map names; the others stay. Throws ConfigError with source,
/// line and dotted key. Does not validate ranges.
void read_into(Config& config, const Document& document, const Source& source);

}  // namespace dmamba::config
