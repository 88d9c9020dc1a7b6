// The extension dmamba._C: conversion only. Python's side of each area is in the file of its name.
#include "bindings/bind.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ side of dmamba; use the dmamba package instead.";
  py::module_::import("torch");
  dmamba::bindings::bind_common(m);
  dmamba::bindings::bind_config(m);
  dmamba::bindings::bind_data(m);
  dmamba::bindings::bind_frames(m);
  dmamba::bindings::bind_external(m);  // before the policies, which name its class
  dmamba::bindings::bind_model(m);
  dmamba::bindings::bind_atari(m);
  dmamba::bindings::bind_train(m);
}
