// The wording of the errors about arrays of transitions.
#include "data/validation.h"

#include <algorithm>
#include <cmath>

#include "dmamba/common/error.h"

namespace dmamba::data {

void require_equal_lengths(const std::string& source, const std::vector<FieldLength>& fields) {
  const bool equal = std::all_of(fields.begin(), fields.end(), [&](const FieldLength& field) {
    return field.second == fields.front().second;
  });
  if (!equal) {
    std::string list;
    for (const auto& [name, rows] : fields) {
      list += (list.empty() ? "" : ", ") + name + " " + std::to_string(rows);
    }
    throw DataError(source + ": the fields differ in length (rows: " + list +
                    "); every field needs one row per transition");
  }
  if (fields.front().second < 1) {
    throw DataError(source + ": the dataset is empty (" + fields.front().first + " has 0 rows)");
  }
}

void require_finite(const std::string& source, const std::string& field,
                    const std::vector<float>& values, std::int64_t columns) {
  const auto is_bad = [](float value) { return !std::isfinite(value); };
  const auto first = std::find_if(values.begin(), values.end(), is_bad);
  if (first == values.end()) {
    return;
  }
  const std::int64_t index = first - values.begin();
  std::string place = field + " row " + std::to_string(index / columns);
  if (columns > 1) {
    place += ", column " + std::to_string(index % columns);
  }
  throw DataError(source + ": " + place + " is " + (std::isnan(*first) ? "NaN" : "infinite") +
                  " (" + std::to_string(std::count_if(first, values.end(), is_bad)) +
                  " such values in the field); remove or repair these rows");
}

}  // namespace dmamba::data
