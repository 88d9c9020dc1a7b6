// Safetensors' names of dtypes.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>
#include <utility>

namespace dmamba::train {

inline constexpr std::pair<at::ScalarType, const char*> kDtypes[] = {
    {at::kDouble, "F64"}, {at::kFloat, "F32"}, {at::kHalf, "F16"},  {at::kBFloat16, "BF16"},
    {at::kLong, "I64"},   {at::kInt, "I32"},   {at::kShort, "I16"}, {at::kChar, "I8"},
    {at::kByte, "U8"},    {at::kBool, "BOOL"}};

/// Absent where there is none.
inline std::optional<std::string> dtype_name(at::ScalarType type) {
  for (const auto& [known, name] : kDtypes) {
    if (known == type) return name;
  }
  return std::nullopt;
}

inline std::optional<at::ScalarType> dtype_of(const std::string& name) {
  for (const auto& [type, known] : kDtypes) {
    if (known == name) return type;
  }
  return std::nullopt;
}

}  // namespace dmamba::train
