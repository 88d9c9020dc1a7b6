// Checks that the in-memory store and the readers share, so that both word their errors alike.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dmamba::data {

/// A field's name and its number of rows.
using FieldLength = std::pair<std::string, std::int64_t>;

/// Throws DataError naming every field's length unless all are equal and at least 1.
void require_equal_lengths(const std::string& source, const std::vector<FieldLength>& fields);

/// Throws DataError naming the first row (and column, if columns > 1) of `values`, a row-major
/// (rows, columns) array, that holds NaN or infinity, and how many such values there are.
void require_finite(const std::string& source, const std::string& field,
                    const std::vector<float>& values, std::int64_t columns);

}  // namespace dmamba::data
