// The names that the two sides of replay_cache.h share.
#pragma once

namespace dmamba::data {

constexpr const char* kConversionVersion = "1";
constexpr const char* kConversion = "conversion";
constexpr const char* kMetadata = "metadata";

}  // namespace dmamba::data
