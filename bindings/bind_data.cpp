// Datasets: the store, its statistics, the sampler.
#include <pybind11/numpy.h>

#include "bindings/bind.h"
#include "dmamba/common/error.h"
#include "dmamba/data/reader.h"
#include "dmamba/data/segment_sampler.h"
#include "dmamba/data/selection.h"
#include "dmamba/data/statistics.h"

namespace dmamba::bindings {
namespace {

using data::EpisodeStore;
using data::TrajectoryStore;

py::dict episode_arrays(const TrajectoryStore& store, int64_t i) {
  const int64_t n = store.num_episodes();
  if (i < -n || i >= n) {
    throw py::index_error("episode " + std::to_string(i) + " of " + std::to_string(n));
  }
  const data::Episode e = store.episode(i < 0 ? i + n : i);
  py::array_t<float> states({e.length, store.state_dim()}), actions({e.length, store.act_dim()});
  py::array_t<float> rewards(e.length), rtg(e.length);
  store.read(e.start, e.length, states.mutable_data(), actions.mutable_data(),
             rewards.mutable_data(), rtg.mutable_data());
  py::dict d;
  d["observations"] = states;
  d["actions"] = actions;
  d["rewards"] = rewards;
  d["returns_to_go"] = rtg;
  d["terminated"] = e.terminated;
  return d;
}

// Opens without the GIL, but for the calls of `progress`.
template <class Open>
std::shared_ptr<TrajectoryStore> open_released(const std::string& storage,
                                               const std::string& scratch,
                                               const py::object& progress, const Open& open) {
  data::Storage s{.kind = storage, .scratch = scratch};
  if (!progress.is_none()) {
    s.progress = [&progress](int64_t done, int64_t total) {
      const py::gil_scoped_acquire gil;
      progress(done, total);
    };
  }
  const py::gil_scoped_release release;
  return open(s);
}

template <class T, class F>
py::array_t<T> by_episode(const EpisodeStore& store, const F& value) {
  py::array_t<T> out(store.num_episodes());
  for (int64_t i = 0; i < store.num_episodes(); ++i) out.mutable_at(i) = value(store.episode(i));
  return out;
}

py::dict summary_dict(const EpisodeStore& store) {
  const data::Summary s = data::summarize(store);
  py::dict d;
  d["episodes"] = s.episodes;
  d["transitions"] = s.transitions;
  d["dropped_transitions"] = s.dropped;
  d["terminals"] = s.terminated;
  d["timeouts"] = s.truncated;
  d["length_min"] = s.length_min;
  d["length_mean"] = s.length_mean;
  d["length_max"] = s.length_max;
  d["return_min"] = s.return_min;
  d["return_mean"] = s.return_mean;
  d["return_std"] = s.return_std;
  d["return_percentile_90"] = s.return_p90;
  d["return_max"] = s.return_max;
  return d;
}

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T>
std::vector<T> values_of(const Array<T>& array) {
  return {array.data(), array.data() + array.size()};
}

std::shared_ptr<TrajectoryStore> create_store(
    const Array<float>& observations, const Array<float>& actions, const Array<float>& rewards,
    const Array<uint8_t>& terminals, const Array<uint8_t>& timeouts, const std::string& name,
    const data::Metadata& metadata) {
  if (observations.ndim() != 2 || actions.ndim() != 2) {
    throw DataError(name + ": observations and actions must be matrices");
  }
  return data::MemoryStore::create(
      {observations.shape(1), actions.shape(1), values_of(observations), values_of(actions),
       values_of(rewards), values_of(terminals), values_of(timeouts)},
      name, metadata);
}

py::tuple sample_batch(const data::SegmentSampler& sampler, uint64_t step) {
  const int64_t batch = sampler.options().batch_size, K = sampler.options().context_length;
  const auto& store = sampler.store();
  py::array_t<float> states({batch, K, store.state_dim()}), actions({batch, K, store.act_dim()});
  py::array_t<float> rtg({batch, K, int64_t{1}});
  py::array_t<int64_t> timesteps({batch, K});
  py::array_t<bool> mask({batch, K});
  sampler.sample(step, {states.mutable_data(), actions.mutable_data(), rtg.mutable_data(),
                        timesteps.mutable_data(), mask.mutable_data()});
  return py::make_tuple(states, actions, rtg, timesteps, mask);
}

}  // namespace

void bind_data(py::module_& m) {
  py::class_<EpisodeStore, std::shared_ptr<EpisodeStore>>(
      m, "EpisodeStore", "What stores of recorded episodes have in common.")
      .def_property_readonly("name", &EpisodeStore::name, "Path of the file or folder.")
      .def_property_readonly("num_transitions", &EpisodeStore::num_transitions,
                             "Environment steps.")
      .def_property_readonly("num_episodes", &EpisodeStore::num_episodes, "Whole episodes.")
      .def_property_readonly("dropped_transitions", &EpisodeStore::dropped_transitions,
                             "Transitions of episodes without beginning or end, which are left "
                             "out.")
      .def_property_readonly("metadata", &EpisodeStore::metadata,
                             "What the file says of itself, as texts.")
      .def_property_readonly(
          "episode_lengths",
          [](const EpisodeStore& s) {
            return by_episode<int64_t>(s, [](const auto& e) { return e.length; });
          },
          "(num_episodes,) int64, in steps.")
      .def_property_readonly(
          "episode_returns",
          [](const EpisodeStore& s) {
            return by_episode<double>(s, [](const auto& e) { return e.ret; });
          },
          "Sums of the raw rewards, (num_episodes,) float64.")
      .def("summary", &summary_dict, "Counts, lengths (steps) and raw returns.")
      .def("__len__", &EpisodeStore::num_episodes);

  py::class_<TrajectoryStore, EpisodeStore, std::shared_ptr<TrajectoryStore>>(
      m, "TrajectoryStore",
      "Episodes whose states and actions are vectors; dmamba.data.load and from_episodes make it.")
      .def_property_readonly("state_dim", &TrajectoryStore::state_dim, "Values of a state.")
      .def_property_readonly("act_dim", &TrajectoryStore::act_dim, "Values of an action.")
      .def("episode", &episode_arrays, py::arg("index"),
           "One episode as numpy arrays: observations (T, state_dim), actions (T, act_dim), "
           "rewards (T,), returns_to_go (T,), raw; and whether it terminated.")
      .def(
          "state_statistics",
          [](const TrajectoryStore& s) {
            const auto statistics = data::state_statistics(s);
            return py::make_tuple(
                py::array_t<float>(statistics.mean.size(), statistics.mean.data()),
                py::array_t<float>(statistics.std.size(), statistics.std.data()));
          },
          "Mean and standard deviation of the states, each (state_dim,) float32.");

  m.def(
      "open_dataset",
      [](const std::string& path, const std::string& format, const std::string& storage,
         const std::string& scratch, const py::object& progress) {
        return open_released(storage, scratch, progress, [&](const data::Storage& s) {
          return data::open_dataset(path, format, s);
        });
      },
      py::arg("path"), py::arg("format") = "auto", py::arg("storage") = "auto",
      py::arg("scratch") = "", py::arg("progress") = py::none(),
      "Reads a dataset file. Raises DataError naming file, field and what to do. `progress` is "
      "called with bytes done and in all where transitions stay on disk.");
  m.def(
      "open_minari",
      [](const std::string& path, const data::Metadata& metadata, const std::string& storage,
         const std::string& scratch, const py::object& progress) {
        return open_released(storage, scratch, progress, [&](const data::Storage& s) {
          return data::open_minari(path, metadata, s);
        });
      },
      py::arg("path"), py::arg("metadata"), py::arg("storage") = "auto", py::arg("scratch") = "",
      py::arg("progress") = py::none(),
      "Reads the HDF5 file of a dataset of Minari's; the metadata become the store's. Otherwise as "
      "open_dataset.");
  m.def("create_store", &create_store, py::arg("observations"), py::arg("actions"),
        py::arg("rewards"), py::arg("terminals"), py::arg("timeouts"), py::arg("name"),
        py::arg("metadata"),
        "A store of arrays (N, state_dim), (N, act_dim), (N,), (N,), (N,), which are copied.");

  m.def("draw_episodes", &data::draw_episodes, py::arg("store"), py::arg("fraction"),
        py::arg("seed"), "Indices of a share of the episodes, ascending; the same for one seed.");
  m.def(
      "select_episodes",
      [](const TrajectoryStore& store, const std::vector<int64_t>& episodes) {
        return std::shared_ptr<TrajectoryStore>(data::select_episodes(store, episodes));
      },
      py::arg("store"), py::arg("episodes"), ReleaseGil(),
      "A store of these episodes of another, in the order given.");
  m.def(
      "delay_rewards",
      [](const TrajectoryStore& store) {
        return std::shared_ptr<TrajectoryStore>(data::delay_rewards(store));
      },
      py::arg("store"), ReleaseGil(),
      "The same episodes, all of whose rewards come with the last step.");

  py::class_<data::SegmentSampler>(m, "SegmentSampler",
                                   "Draws training segments as the paper does; the same for the "
                                   "same (seed, step), whoever asks.")
      .def(py::init([](std::shared_ptr<TrajectoryStore> store, int64_t batch_size,
                       int64_t context_length, uint64_t seed, bool paper_padding, double rtg_scale,
                       std::vector<float> state_mean, std::vector<float> state_std,
                       int64_t max_timestep) {
             return data::SegmentSampler(
                 std::move(store), {batch_size, context_length, seed, paper_padding, rtg_scale,
                                    std::move(state_mean), std::move(state_std), max_timestep});
           }),
           py::arg("store"), py::arg("batch_size"), py::arg("context_length"), py::arg("seed"),
           py::arg("paper_padding"), py::arg("rtg_scale"), py::arg("state_mean"),
           py::arg("state_std"), py::arg("max_timestep"))
      .def("sample", &sample_batch, py::arg("step"),
           "The batch of a step: states (batch, K, state_dim), actions (batch, K, act_dim), "
           "returns_to_go (batch, K, 1), timesteps (batch, K) int64, mask (batch, K) bool.")
      .def(
          "segment",
          [](const data::SegmentSampler& s, uint64_t step, int64_t index) {
            const data::Segment segment = s.segment(step, index);
            return py::make_tuple(segment.episode, segment.start, segment.length);
          },
          py::arg("step"), py::arg("index"), "(episode, start, length) of one sample.");
}

}  // namespace dmamba::bindings
