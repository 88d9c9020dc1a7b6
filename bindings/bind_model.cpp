// The modules and the policy.
#include "bindings/bind.h"
#include "dmamba/model/dmamba.h"
#include "dmamba/model/multi_dmamba.h"
#include "dmamba/model/policy.h"
#include "dmamba/nn/mamba.h"

namespace dmamba::bindings {
namespace {

using torch::Tensor;

/// Of its own, since a vector would be converted to a list.
struct Carried {
  model::RecurrentState state;
};

template <class Model>
model::Policy make_policy(std::shared_ptr<typename Model::ContainedType> model,
                          const std::string& kind, int64_t num_envs, double rtg_scale,
                          std::vector<float> state_mean, std::vector<float> state_std,
                          const std::string& weights, int64_t context_length,
                          int64_t forget_after) {
  return model::Policy(Model(std::move(model)),
                       {kind, num_envs, rtg_scale, std::move(state_mean), std::move(state_std),
                        weights, context_length, forget_after});
}

template <class Module>
void name_module(py::module_& m, const char* name, const char* doc) {
  m.attr(name).attr("__module__") = "dmamba._C";
  m.attr(name).attr("__doc__") = doc;
}

}  // namespace

void bind_model(py::module_& m) {
  torch::python::bind_module<nn::MambaImpl, true>(m, "Mamba")
      .def(py::init([](int64_t d_model, int64_t d_state, int64_t d_conv, int64_t expand,
                       int64_t dt_rank, bool conv_bias, bool bias) {
             return std::make_shared<nn::MambaImpl>(
                 nn::MambaOptions{d_model, d_state, d_conv, expand, dt_rank, conv_bias, bias});
           }),
           py::arg("d_model"), py::arg("d_state"), py::arg("d_conv"), py::arg("expand"),
           py::arg("dt_rank"), py::arg("conv_bias") = true, py::arg("bias") = false)
      .def(
          "forward",
          [](nn::MambaImpl& self, const Tensor& x, const ops::OptionalTensor& mask,
             const ops::OptionalTensor& segment_starts) {
            return self.forward(x, {mask, segment_starts});
          },
          py::arg("x"), py::arg("mask") = py::none(), py::arg("segment_starts") = py::none(),
          ReleaseGil());
  name_module<nn::MambaImpl>(m, "Mamba", "A Mamba block in C++; see dmamba.nn.Mamba.");

  py::class_<Carried>(m, "RecurrentState", "What the layers carry from step to step of episodes.");
  torch::python::bind_module<model::DMambaImpl, true>(m, "DMamba")
      .def(py::init<int64_t, int64_t, const config::ModelConfig&>(), py::arg("state_dim"),
           py::arg("act_dim"), py::arg("config"))
      .def(py::init<int64_t, int64_t, const model::DMambaImpl&>(), py::arg("state_dim"),
           py::arg("act_dim"), py::arg("trunk"))
      .def("forward", &model::DMambaImpl::forward, py::arg("states"), py::arg("actions"),
           py::arg("returns_to_go"), py::arg("timesteps"), py::arg("mask") = py::none(),
           ReleaseGil())
      .def(
          "initial_state",
          [](const model::DMambaImpl& self, int64_t batch) {
            return std::make_unique<Carried>(Carried{self.initial_state(batch)});
          },
          py::arg("batch"))
      .def(
          "step",
          [](model::DMambaImpl& self, const Tensor& previous_actions, const Tensor& returns_to_go,
             const Tensor& states, const Tensor& timesteps, const Tensor& first, Carried& carried) {
            return self.step({previous_actions, returns_to_go, states, timesteps, first},
                             carried.state);
          },
          py::arg("previous_actions"), py::arg("returns_to_go"), py::arg("states"),
          py::arg("timesteps"), py::arg("first"), py::arg("state"), ReleaseGil())
      .def_property_readonly("state_dim", &model::DMambaImpl::state_dim)
      .def_property_readonly("act_dim", &model::DMambaImpl::act_dim)
      .def_property_readonly("config", [](const model::DMambaImpl& self) { return self.config(); });
  name_module<model::DMambaImpl>(m, "DMamba", "Decision Mamba in C++; see dmamba.nn.DMamba.");

  torch::python::bind_module<model::MultiDMambaImpl, true>(m, "MultiDMamba")
      .def(py::init([](const std::vector<std::shared_ptr<model::DMambaImpl>>& models,
                       std::vector<std::string> names) {
             return std::make_shared<model::MultiDMambaImpl>(
                 std::vector<model::DMamba>(models.begin(), models.end()), std::move(names));
           }),
           py::arg("models"), py::arg("names"))
      .def_property_readonly("names", &model::MultiDMambaImpl::names);
  name_module<model::MultiDMambaImpl>(m, "MultiDMamba",
                                      "Models over one trunk in C++; see dmamba.nn.MultiDMamba.");

  py::class_<model::Policy>(m, "Policy",
                            "Acting with a model in a batch of environments: reset, then act and "
                            "observe in turn.")
      .def(py::init(&make_policy<model::DMamba>), py::arg("model"), py::arg("kind"),
           py::arg("num_envs"), py::arg("rtg_scale"), py::arg("state_mean"), py::arg("state_std"),
           py::arg("weights") = "fp32", py::arg("context_length") = 0, py::arg("forget_after") = 0)
      .def(py::init(&make_policy<model::ExternalModel>), py::arg("model"), py::arg("kind"),
           py::arg("num_envs"), py::arg("rtg_scale"), py::arg("state_mean"), py::arg("state_std"),
           py::arg("weights") = "fp32", py::arg("context_length") = 0, py::arg("forget_after") = 0)
      .def("reset", &model::Policy::reset, py::arg("which"), py::arg("targets"), ReleaseGil(),
           "Begins an episode where which (num_envs,) is true; targets (num_envs,) raw.")
      .def("act", &model::Policy::act, py::arg("observations"), ReleaseGil(),
           "Actions (num_envs, act_dim) for raw observations (num_envs, state_dim), on the CPU.")
      .def("observe", &model::Policy::observe, py::arg("rewards"), ReleaseGil(),
           "Takes the raw rewards (num_envs,) of the last actions.");
}

}  // namespace dmamba::bindings
