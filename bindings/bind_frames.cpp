// Recorded games: the store of frames, its reader, its sampler.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>

#include "bindings/bind.h"
#include "dmamba/data/frame_sampler.h"
#include "dmamba/data/frame_store.h"
#include "dmamba/data/replay_outline.h"

namespace dmamba::bindings {
namespace {

using data::FrameStore;

// Views of the store's own memory: read-only, and the array keeps the store alive.
template <class T>
py::array view(const py::object& store, const T* data, std::vector<py::ssize_t> shape) {
  py::array_t<T> array(std::move(shape), data, store);
  array.attr("flags").attr("writeable") = false;
  return array;
}

py::array frames_of(const py::object& store, int64_t first, int64_t count) {
  const std::uint8_t* data = store.cast<const FrameStore&>().frames().data();
  return view(store, data + first * data::kFrameBytes, {count, data::kFrameSide, data::kFrameSide});
}

template <class T>
py::array column(const py::object& store, std::span<const T> values) {
  return view(store, values.data(), {static_cast<py::ssize_t>(values.size())});
}

py::dict episode_views(const py::object& object, int64_t i) {
  const auto& store = object.cast<const FrameStore&>();
  const int64_t n = store.num_episodes();
  if (i < -n || i >= n) {
    throw py::index_error("episode " + std::to_string(i) + " of " + std::to_string(n));
  }
  const data::Episode e = store.episode(i < 0 ? i + n : i);
  py::dict d;
  d["frames"] = frames_of(object, e.start, e.length);
  d["actions"] = column(object, store.actions().subspan(e.start, e.length));
  d["rewards"] = column(object, store.rewards().subspan(e.start, e.length));
  d["returns_to_go"] = column(object, store.returns_to_go().subspan(e.start, e.length));
  d["terminated"] = e.terminated;
  return d;
}

// open_replay or outline_replay.
template <auto kRead>
auto read_replay(const std::string& path, int64_t buffers, int64_t trajectories_per_buffer,
                 int64_t transitions, uint64_t seed, std::string game, std::string cache,
                 const py::object& progress) {
  data::ReadProgress report;
  if (!progress.is_none()) {
    report = [&progress](int64_t done, int64_t total) {
      const py::gil_scoped_acquire gil;
      progress(done, total);
    };
  }
  const py::gil_scoped_release release;
  return kRead(path, {buffers, trajectories_per_buffer, transitions, seed, std::move(game)},
               {std::move(cache)}, report);
}

py::tuple sample_batch(const data::FrameSampler& sampler, uint64_t step) {
  const int64_t batch = sampler.options().batch_size, K = sampler.options().context_length;
  const int64_t strip = data::kFrameStack - 1 + K;
  py::array_t<std::uint8_t> strips({batch, strip, data::kFrameSide, data::kFrameSide});
  py::array_t<int64_t> actions({batch, K}), timesteps(batch);
  py::array_t<float> rtg({batch, K, int64_t{1}});
  py::array_t<bool> mask({batch, K});
  sampler.sample(step, {strips.mutable_data(), actions.mutable_data(), rtg.mutable_data(),
                        timesteps.mutable_data(), mask.mutable_data()});
  return py::make_tuple(strips, actions, rtg, timesteps, mask);
}

}  // namespace

void bind_frames(py::module_& m) {
  py::class_<FrameStore, data::EpisodeStore, std::shared_ptr<FrameStore>>(
      m, "FrameStore",
      "Episodes of a recorded game; dmamba.data.load makes it. Arrays are read-only views.")
      .def_property_readonly("num_actions", &FrameStore::num_actions, "Largest action + 1.")
      .def_property_readonly(
          "frames",
          [](const py::object& s) {
            return frames_of(s, 0, s.cast<const FrameStore&>().num_transitions());
          },
          "(N, 84, 84) uint8, a frame a transition.")
      .def_property_readonly(
          "actions",
          [](const py::object& s) { return column(s, s.cast<const FrameStore&>().actions()); },
          "(N,) int32, indices.")
      .def_property_readonly(
          "rewards",
          [](const py::object& s) { return column(s, s.cast<const FrameStore&>().rewards()); },
          "(N,) float32, clipped to [-1, 1].")
      .def_property_readonly(
          "returns_to_go",
          [](const py::object& s) {
            return column(s, s.cast<const FrameStore&>().returns_to_go());
          },
          "(N,) float32, sums of clipped rewards to the game's end.")
      .def_property_readonly(
          "episode_ends",
          [](const py::object& s) { return column(s, s.cast<const FrameStore&>().episode_ends()); },
          "Transitions before the end of each episode.")
      .def("episode", &episode_views, py::arg("index"),
           "One episode as numpy arrays: frames (T, 84, 84), actions (T,), rewards (T,), "
           "returns_to_go (T,); and whether it terminated.");

  py::class_<data::ReplayOutline, data::EpisodeStore, std::shared_ptr<data::ReplayOutline>>(
      m, "ReplayOutline", "Episodes of a recorded game without its frames; by outline_replay.")
      .def_property_readonly("num_actions", &data::ReplayOutline::num_actions,
                             "Largest action + 1.")
      .def_property_readonly("actions", [](const py::object& s) {
        return column(s, s.cast<const data::ReplayOutline&>().actions());
      });

  m.def("outline_replay", &read_replay<&data::outline_replay>, py::arg("path"),
        py::arg("buffers") = 0, py::arg("trajectories_per_buffer") = 0, py::arg("transitions") = 0,
        py::arg("seed") = 0, py::arg("game") = "", py::arg("cache") = "",
        py::arg("progress") = py::none(),
        "Looks at a recording as open_replay reads it, without its frames: a ReplayOutline, or the "
        "FrameStore of a converted file that is there.");
  m.def(
      "open_replay", &read_replay<&data::open_replay>, py::arg("path"), py::arg("buffers") = 0,
      py::arg("trajectories_per_buffer") = 0, py::arg("transitions") = 0, py::arg("seed") = 0,
      py::arg("game") = "", py::arg("cache") = "", py::arg("progress") = py::none(),
      "Reads a recording in the DQN-replay layout, or a converted file. `progress` is called with "
      "bytes done and in all, some twenty times a second; an exception of it ends the reading.");

  py::class_<data::FrameSampler>(m, "FrameSampler",
                                 "Draws segments of games; the same for the same (seed, step), "
                                 "whoever asks.")
      .def(
          py::init([](std::shared_ptr<FrameStore> store, int64_t batch_size, int64_t context_length,
                      uint64_t seed, double rtg_scale, int64_t max_timestep) {
            return data::FrameSampler(std::move(store),
                                      {batch_size, context_length, seed, rtg_scale, max_timestep});
          }),
          py::arg("store").none(false), py::arg("batch_size"), py::arg("context_length"),
          py::arg("seed") = 0, py::arg("rtg_scale") = 1.0, py::arg("max_timestep") = 10000)
      .def("sample", &sample_batch, py::arg("step"),
           "The batch of a step: strips (batch, 3 + K, 84, 84) uint8, actions (batch, K) int64, "
           "returns_to_go (batch, K, 1), timesteps (batch,) int64, mask (batch, K) bool.")
      .def(
          "segment",
          [](const data::FrameSampler& s, uint64_t step, int64_t index) {
            const data::Segment segment = s.segment(step, index);
            return py::make_tuple(segment.episode, segment.start, segment.length);
          },
          py::arg("step"), py::arg("index"), "(episode, start, length) of one sample.");
}

}  // namespace dmamba::bindings
