// The trainer and checkpoints.
#include <torch/csrc/Exceptions.h>

#include "bindings/bind.h"
#include "dmamba/train/checkpoint.h"
#include "dmamba/train/device.h"
#include "dmamba/train/ranks.h"
#include "dmamba/train/trainer.h"
#include "dmamba/train/transfer.h"

namespace dmamba::bindings {
namespace {

using Statistics = std::pair<std::vector<float>, std::vector<float>>;  // mean, deviation

std::optional<data::StateStatistics> statistics_of(const std::optional<Statistics>& given) {
  if (!given) return std::nullopt;
  return data::StateStatistics{given->first, given->second};
}

py::list run_burst(train::Trainer& trainer, double seconds, int64_t max_steps) {
  std::vector<train::MetricsRow> rows;
  try {
    const py::gil_scoped_release release;
    rows = trainer.run(seconds, max_steps);
  } catch (python_error& error) {  // of a Python function in the backward pass
    error.restore();
    throw py::error_already_set();
  }
  py::list out;
  for (const auto& row : rows) {
    py::dict d;
    d["step"] = row.step;
    d["training/loss"] = row.loss;
    d["training/grad_norm"] = row.gradient_norm;
    d["training/learning_rate"] = row.learning_rate;
    d["training/skipped"] = row.skipped;
    out.append(d);
  }
  return out;
}

py::list list_sets(const train::TrainingState& state) {
  py::list sets;
  for (const train::SetState& set : state.sets) {
    py::dict d;
    d["name"] = set.name;
    d["state_dim"] = set.state_dim;
    d["act_dim"] = set.act_dim;
    d["state_mean"] = set.state_mean;
    d["state_std"] = set.state_std;
    d["steps"] = set.steps;
    sets.append(d);
  }
  return sets;
}

}  // namespace

void bind_train(py::module_& m) {
  py::register_exception<train::LostRankError>(m, "LostRankError", m.attr("Error").ptr()).doc() =
      "Another process of the same training is gone; the message says which, and how to go on.";

  py::class_<train::Ranks, std::shared_ptr<train::Ranks>>(
      m, "Ranks", "The processes that train one model together, over a torch ProcessGroup.")
      .def(py::init<c10::intrusive_ptr<c10d::ProcessGroup>, int64_t>(), py::arg("group"),
           py::arg("bucket_bytes") = train::Ranks::kBucketBytes)
      .def_property_readonly("rank", &train::Ranks::rank)
      .def_property_readonly("world", &train::Ranks::world)
      .def_property_readonly("bucket_bytes", &train::Ranks::bucket_bytes,
                             "Gradients are summed in buckets of about this size.");

  py::class_<train::Trainer>(m, "Trainer", "Trains a model on a store, in bursts.")
      .def(py::init([](const config::Config& config, std::shared_ptr<data::TrajectoryStore> store,
                       std::shared_ptr<model::DMambaImpl> model,
                       const std::shared_ptr<train::Ranks>& ranks,
                       const std::optional<Statistics>& statistics) {
             return std::make_unique<train::Trainer>(config, std::move(store),
                                                     model::DMamba(std::move(model)), ranks,
                                                     statistics_of(statistics));
           }),
           py::arg("config"), py::arg("store").none(false), py::arg("model").none(false),
           py::arg("ranks") = nullptr, py::arg("statistics") = py::none(), ReleaseGil())
      .def(py::init([](const config::Config& config, std::shared_ptr<data::TrajectoryStore> store,
                       std::shared_ptr<model::ExternalModelImpl> model,
                       const std::shared_ptr<train::Ranks>& ranks,
                       const std::optional<Statistics>& statistics) {
             return std::make_unique<train::Trainer>(config, std::move(store),
                                                     model::ExternalModel(std::move(model)), ranks,
                                                     statistics_of(statistics));
           }),
           py::arg("config"), py::arg("store").none(false), py::arg("model").none(false),
           py::arg("ranks") = nullptr, py::arg("statistics") = py::none(), ReleaseGil())
      .def(py::init([](const config::Config& config, std::shared_ptr<data::FrameStore> store,
                       std::shared_ptr<model::AtariDMambaImpl> model,
                       const std::shared_ptr<train::Ranks>& ranks) {
             return std::make_unique<train::Trainer>(config, std::move(store),
                                                     model::AtariDMamba(std::move(model)), ranks);
           }),
           py::arg("config"), py::arg("store").none(false), py::arg("model").none(false),
           py::arg("ranks") = nullptr, ReleaseGil())
      .def(py::init([](const config::Config& config,
                       const std::vector<std::shared_ptr<data::TrajectoryStore>>& stores,
                       std::shared_ptr<model::MultiDMambaImpl> model) {
             return std::make_unique<train::Trainer>(
                 config,
                 std::vector<std::shared_ptr<const data::TrajectoryStore>>(stores.begin(),
                                                                           stores.end()),
                 model::MultiDMamba(std::move(model)));
           }),
           py::arg("config"), py::arg("stores"), py::arg("model").none(false))
      .def("run", &run_burst, py::arg("seconds") = 0.2, py::arg("max_steps") = -1,
           "Trains for about `seconds` or max_steps; returns the rows of metrics that fell due.")
      .def_property_readonly("step", &train::Trainer::step, "Optimizer steps done.")
      .def_property_readonly("skipped", &train::Trainer::skipped,
                             "Of these, the ones whose loss or gradient was not finite.")
      .def_property_readonly("finished", &train::Trainer::finished)
      .def_property_readonly(
          "device", [](const train::Trainer& t) { return t.device().str(); },
          "Where the steps are computed: cpu, cuda:0, ...")
      .def_property_readonly("uses_graph", &train::Trainer::uses_graph,
                             "Whether the last step was a replay of a CUDA graph.")
      .def_property_readonly("data_on_device", &train::Trainer::data_on_device,
                             "Whether batches are drawn from a recording in the GPU's memory.")
      .def_property_readonly("state_mean",
                             [](const train::Trainer& t) { return t.state().state_mean; })
      .def_property_readonly("state_std",
                             [](const train::Trainer& t) { return t.state().state_std; })
      .def_property_readonly(
          "sets", [](const train::Trainer& t) { return list_sets(t.state()); },
          "Of a run on several sets: name, sizes, statistics and steps of each.")
      .def(
          "save", [](train::Trainer& t, const std::string& folder) { t.save(folder); },
          py::arg("folder"), ReleaseGil(), "Writes a checkpoint folder, whole or not at all.")
      .def(
          "load", [](train::Trainer& t, const std::string& folder) { t.load(folder); },
          py::arg("folder"), ReleaseGil(), "Continues from a checkpoint folder.")
      .def(
          "choose_contexts",
          [](train::Trainer& t, std::vector<int64_t> lengths, int64_t best, std::string note) {
            t.choose_contexts({std::move(lengths), best, std::move(note)});
          },
          py::arg("lengths"), py::arg("best"), py::arg("note"),
          "From now on K of a step is drawn from lengths, and the run acts with best; note, a JSON "
          "text, is kept in checkpoints.")
      .def_property_readonly(
          "context_note", [](const train::Trainer& t) { return t.state().contexts.note; },
          "The note of choose_contexts(), or of the checkpoint that was loaded.")
      .def_property_readonly(
          "context_length", [](const train::Trainer& t) { return t.state().contexts.best; },
          "K to act with; 0: the model's.")
      .def("synchronize", &train::Trainer::synchronize, ReleaseGil(),
           "With ranks: takes parameters, moments and step from rank 0.")
      .def("release", &train::Trainer::release, ReleaseGil(),
           "Forgets the captured graph, without which NCCL cannot close.");

  m.def(
      "resolve_device",
      [](const std::string& choice, const std::string& key) {
        return train::resolve_device(choice, key).str();
      },
      py::arg("choice"), py::arg("key") = "device",
      "The device that auto, cpu or cuda stands for here; key is what messages name.");
  m.def(
      "read_checkpoint",
      [](const std::string& folder) {
        const train::TrainingState s = train::read_training_state(folder);
        py::dict d;
        d["step"] = s.step;
        d["state_dim"] = s.state_dim;
        d["act_dim"] = s.act_dim;
        d["state_mean"] = s.state_mean;
        d["state_std"] = s.state_std;
        d["num_actions"] = s.num_actions;
        d["external_model"] = s.external_model;
        d["sets"] = list_sets(s);
        d["context_length"] = s.contexts.best;
        d["config"] = s.config;
        return d;
      },
      py::arg("folder"), "What a checkpoint folder says beside its tensors.");
  m.def(
      "init_parameters",
      [](const std::string& origin, const std::shared_ptr<torch::nn::Module>& model,
         const config::Config& config) {
        const train::TransferReport report = train::init_parameters(origin, *model, config);
        return py::make_tuple(report.taken, report.fresh);
      },
      py::arg("origin"), py::arg("model"), py::arg("config"),
      "Copies what fits of a checkpoint folder or safetensors file into the model of a run with "
      "this config; returns the names taken, and those that begin anew.");
  m.def(
      "load_parameters",
      [](const std::string& folder, const std::shared_ptr<torch::nn::Module>& model) {
        train::load_parameters(folder, *model);
      },
      py::arg("folder"), py::arg("model"), ReleaseGil(),
      "Copies a checkpoint's model.safetensors into the model.");
}

}  // namespace dmamba::bindings
