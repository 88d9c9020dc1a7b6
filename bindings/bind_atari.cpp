// The model for games and its policy.
#include "bindings/bind.h"
#include "dmamba/model/atari.h"
#include "dmamba/model/atari_policy.h"

namespace dmamba::bindings {

void bind_atari(py::module_& m) {
  using model::AtariDMambaImpl;
  torch::python::bind_module<AtariDMambaImpl, true>(m, "AtariDMamba")
      .def(py::init<int64_t, const config::ModelConfig&>(), py::arg("num_actions"),
           py::arg("config"))
      .def("forward", &AtariDMambaImpl::forward, py::arg("frames"), py::arg("actions"),
           py::arg("returns_to_go"), py::arg("timesteps"), py::arg("mask") = py::none(),
           ReleaseGil())
      .def("encode", &AtariDMambaImpl::encode, py::arg("stacks"), ReleaseGil())
      .def("encode_strips", &AtariDMambaImpl::encode_strips, py::arg("strips"), ReleaseGil())
      .def("loss", &AtariDMambaImpl::loss, py::arg("strips"), py::arg("actions"),
           py::arg("returns_to_go"), py::arg("timesteps"), py::arg("mask"), ReleaseGil())
      .def_property_readonly("num_actions", &AtariDMambaImpl::num_actions)
      .def_property_readonly("config", [](const AtariDMambaImpl& self) { return self.config(); });
  m.attr("AtariDMamba").attr("__module__") = "dmamba._C";
  m.attr("AtariDMamba").attr("__doc__") =
      "Decision Mamba for games in C++; see dmamba.nn.AtariDMamba.";

  using model::AtariPolicy;
  py::class_<AtariPolicy>(m, "AtariPolicy",
                          "Playing a batch of games with a model: reset, then act and observe in "
                          "turn.")
      .def(py::init([](std::shared_ptr<AtariDMambaImpl> model, const std::string& kind,
                       int64_t num_envs, double rtg_scale, double temperature,
                       int64_t context_length, int64_t forget_after) {
             return AtariPolicy(
                 model::AtariDMamba(std::move(model)),
                 {kind, num_envs, rtg_scale, temperature, context_length, forget_after});
           }),
           py::arg("model"), py::arg("kind"), py::arg("num_envs"), py::arg("rtg_scale") = 1.0,
           py::arg("temperature") = 1.0, py::arg("context_length") = 0, py::arg("forget_after") = 0)
      .def("reset", &AtariPolicy::reset, py::arg("which"), py::arg("targets"), py::arg("seeds"),
           ReleaseGil(),
           "Begins an episode where which (num_envs,) is true; targets (num_envs,) float64, seeds "
           "(num_envs,) int64 of the draws.")
      .def("act", &AtariPolicy::act, py::arg("frames"), ReleaseGil(),
           "Actions (num_envs,) int64 for frames (num_envs, 4, 84, 84) uint8, on the CPU.")
      .def_property_readonly("logits", &AtariPolicy::logits,
                             "(num_envs, num_actions) float32 that act() drew from.")
      .def("observe", &AtariPolicy::observe, py::arg("rewards"), ReleaseGil(),
           "Takes what the last actions earned (num_envs,), in the unit of the targets.");
}

}  // namespace dmamba::bindings
