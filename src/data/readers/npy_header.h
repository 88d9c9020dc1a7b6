// The header of NumPy's .npy format: a Python dictionary in text.
// numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "data/readers/npy_stream.h"

namespace dmamba::data {

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }` and white space: each key
/// once, in any order. Empty where the text is anything else; `reason` then says what is wrong.
std::optional<NpyHeader> parse_npy_header(std::string_view text, std::string* reason);

}  // namespace dmamba::data
