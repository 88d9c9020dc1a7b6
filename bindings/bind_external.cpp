// Models whose arithmetic is Python's.
#include <optional>
#include <tuple>

#include "bindings/bind.h"
#include "dmamba/model/external.h"

namespace dmamba::bindings {
namespace {

using torch::Tensor;

/// A Python object that C++ may keep and drop in any thread.
using Kept = std::shared_ptr<py::object>;

Kept keep(py::object object) {
  return {new py::object(std::move(object)), [](py::object* kept) {
            const py::gil_scoped_acquire gil;
            delete kept;
          }};
}

template <class Result, class... Arguments>
Result call(const Kept& function, const Arguments&... arguments) {
  const py::gil_scoped_acquire gil;
  return (*function)(arguments...).template cast<Result>();
}

/// The module's mode is changed in destructors, too, through which no Ctrl-C may pass: it is raised
/// by Python's next line instead.
void set_training(const Kept& module, bool on) {
  const py::gil_scoped_acquire gil;
  try {
    module->attr("train")(on);
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_KeyboardInterrupt)) throw;
    PyErr_SetInterrupt();
  }
}

bool is_training(const Kept& module) {
  const py::gil_scoped_acquire gil;
  return module->attr("training").cast<bool>();
}

/// A name, and a parameter or a module in C++.
using Part = std::tuple<std::string, std::optional<Tensor>, std::shared_ptr<torch::nn::Module>>;

std::vector<model::ExternalPart> parts_of(const std::vector<Part>& parts) {
  std::vector<model::ExternalPart> out;
  out.reserve(parts.size());
  for (const auto& [name, parameter, module] : parts) {
    out.push_back({name, parameter.value_or(Tensor()), module});
  }
  return out;
}

std::shared_ptr<model::ExternalModelImpl> make(std::string name, int64_t state_dim, int64_t act_dim,
                                               const config::ModelConfig& config,
                                               const std::vector<Part>& parts,
                                               std::vector<std::string> embeddings,
                                               py::object module, py::object forward,
                                               py::object buffers) {
  model::ExternalOptions options;
  options.name = std::move(name);
  options.state_dim = state_dim;
  options.act_dim = act_dim;
  options.config = config;
  options.parts = parts_of(parts);
  options.embeddings = std::move(embeddings);
  const Kept its_forward = keep(std::move(forward)), its_buffers = keep(std::move(buffers)),
             itself = keep(std::move(module));
  options.forward = [its_forward](const Tensor& states, const Tensor& actions,
                                  const Tensor& returns_to_go, const Tensor& timesteps,
                                  const Tensor& mask) {
    return call<Tensor>(its_forward, states, actions, returns_to_go, timesteps, mask);
  };
  options.buffers = [its_buffers] { return call<model::NamedTensors>(its_buffers); };
  options.is_training = [itself] { return is_training(itself); };
  options.set_training = [itself](bool on) { set_training(itself, on); };
  return std::make_shared<model::ExternalModelImpl>(std::move(options));
}

}  // namespace

void bind_external(py::module_& m) {
  using model::ExternalModelImpl;
  py::class_<ExternalModelImpl, torch::nn::Module, std::shared_ptr<ExternalModelImpl>>(
      m, "ExternalModel", "A torch.nn.Module of Python's as C++ sees it; see dmamba.nn.external.")
      .def(py::init(&make), py::arg("name"), py::arg("state_dim"), py::arg("act_dim"),
           py::arg("config"), py::arg("parts"), py::arg("embeddings"), py::arg("module"),
           py::arg("forward"), py::arg("buffers"))
      .def_property_readonly("state_dim", &ExternalModelImpl::state_dim)
      .def_property_readonly("act_dim", &ExternalModelImpl::act_dim);
}

}  // namespace dmamba::bindings
