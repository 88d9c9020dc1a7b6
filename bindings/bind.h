// What the binding files share.
#pragma once

#include <torch/python.h>

namespace py = pybind11;

namespace dmamba::bindings {

void bind_common(py::module_& m);  ///< errors, log level, instruction sets
void bind_config(py::module_& m);
void bind_data(py::module_& m);
void bind_frames(py::module_& m);  ///< after bind_data
void bind_model(py::module_& m);
void bind_atari(py::module_& m);
void bind_external(py::module_& m);  ///< before bind_train
void bind_train(py::module_& m);

/// Calls that take long let other Python threads run.
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

}  // namespace dmamba::bindings
