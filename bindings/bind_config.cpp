// Config and its sections; the fields come from the table in dmamba/config/fields.h.
#include "bindings/bind.h"
#include "dmamba/config/fields.h"
#include "dmamba/config/yaml.h"

namespace dmamba::bindings {
namespace {

using config::Config;

template <class Struct>
py::dict to_dict(const Struct& s) {
  py::dict d;
  config::for_each_field(
      [&](const char* name, auto member, const char*) {
        using Field = std::remove_cvref_t<decltype(s.*member)>;
        if constexpr (config::kIsSection<Field>) {
          d[name] = to_dict(s.*member);
        } else {
          d[name] = py::cast(s.*member);
        }
      },
      config::Tag<Struct>{});
  return d;
}

template <class Struct>
py::class_<Struct> bind_section(py::module_& m, const char* name, const char* doc) {
  py::class_<Struct> section(m, name, doc);
  config::for_each_field(
      [&](const char* field, auto member, const char* meaning) {
        section.def_readwrite(field, member, meaning);
      },
      config::Tag<Struct>{});
  section.def(py::init<>())
      .def("to_dict", &to_dict<Struct>, "The fields as a dict; sections are dicts in it.")
      .def(
          "copy", [](const Struct& s) { return s; }, "An independent copy.")
      .def("__eq__", [](const Struct& a, const Struct& b) { return a == b; }, py::is_operator());
  return section;
}

}  // namespace

void bind_config(py::module_& m) {
  bind_section<config::DatasetConfig>(m, "DatasetConfig", "Which dataset, and its scales.");
  auto model = bind_section<config::ModelConfig>(m, "ModelConfig", "The network.");
  model.def(py::pickle(
      [](const config::ModelConfig& c) {
        Config whole;
        whole.model = c;
        return py::make_tuple(config::to_yaml(whole));
      },
      [](const py::tuple& t) {
        return config::parse_config(t[0].cast<std::string>(), "pickled ModelConfig").model;
      }));
  bind_section<config::TrainingConfig>(m, "TrainingConfig", "The optimisation.");
  bind_section<config::TransferConfig>(m, "TransferConfig", "Where parameters begin.");
  bind_section<config::PretrainingConfig>(m, "PretrainingConfig", "Several sets at once.");
  bind_section<config::EvaluationConfig>(m, "EvaluationConfig", "Scoring in the environment.");
  bind_section<Config>(m, "Config", "The configuration of a run.")
      .def_static(
          "load", [](const std::string& path) { return config::load_config(path); },
          py::arg("path"), "Reads and validates a YAML file.")
      .def_static(
          "parse",
          [](const std::string& text, const std::string& source) {
            return config::parse_config(text, source);
          },
          py::arg("text"), py::arg("source") = "<text>", "Reads and validates a YAML text.")
      .def(
          "override",
          [](Config& c, const std::vector<std::string>& overrides) {
            config::apply_overrides(c, overrides);
          },
          py::arg("overrides"), "Applies 'key=value' overrides in order, all or none.")
      .def(
          "to_yaml", [](const Config& c, bool docs) { return config::to_yaml(c, docs); },
          py::arg("with_docs") = false, "The whole config as YAML.")
      .def(
          "validate", [](const Config& c) { config::validate(c); },
          "Raises ConfigError for the first value out of range.")
      .def("__repr__", [](const Config& c) { return config::to_yaml(c); });
}

}  // namespace dmamba::bindings
