// The visits, one draw each.
#include "data/readers/replay_selection.h"

#include <algorithm>
#include <limits>

#include "dmamba/common/philox.h"

namespace dmamba::data {

std::vector<std::int64_t> choose_episodes(const std::vector<std::vector<std::int64_t>>& lengths,
                                          const ReplaySelection& selection) {
  const auto number_of = [&](std::size_t shard) {
    return static_cast<std::int64_t>(lengths[shard].size());
  };
  std::vector<std::int64_t> chosen(lengths.size(), 0);
  std::vector<std::size_t> left;
  for (std::size_t shard = 0; shard < lengths.size(); ++shard) {
    if (selection.transitions == 0) chosen[shard] = number_of(shard);
    if (chosen[shard] < number_of(shard)) left.push_back(shard);
  }
  const common::Philox random{selection.seed};
  std::int64_t transitions = 0;
  for (std::uint64_t visit = 0; transitions < selection.transitions && !left.empty(); ++visit) {
    const std::uint64_t bits = random(visit, 0, common::PhiloxPurpose::kVisit).bits64(0);
    const auto place =
        left.begin() + static_cast<std::ptrdiff_t>(common::bounded(bits, left.size()));
    const std::size_t shard = *place;
    std::int64_t rest = selection.trajectories_per_buffer > 0
                            ? selection.trajectories_per_buffer
                            : std::numeric_limits<std::int64_t>::max();
    while (rest-- > 0 && transitions < selection.transitions && chosen[shard] < number_of(shard)) {
      transitions += lengths[shard][chosen[shard]++];
    }
    if (chosen[shard] == number_of(shard)) left.erase(place);
  }
  return chosen;
}

}  // namespace dmamba::data
