// Errors, logging, instruction sets.
#include <cstring>

#include "bindings/bind.h"
#include "dmamba/common/atomic_file.h"
#include "dmamba/common/error.h"
#include "dmamba/common/log.h"
#include "dmamba/ops/ops.h"

namespace dmamba::bindings {
namespace {

// Messages repeat what stands in files, which need not be UTF-8.
void set_error(const char* type, const std::exception& error) {
  const auto text = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
      error.what(), static_cast<Py_ssize_t>(std::strlen(error.what())), "backslashreplace"));
  PyErr_SetObject(py::module_::import("dmamba._C").attr(type).ptr(), text.ptr());
}

}  // namespace

void bind_common(py::module_& m) {
  auto& error = py::register_exception<Error>(m, "Error", PyExc_RuntimeError);
  error.doc() = "What the library refuses to do; the message says why, and what to do.";
  py::register_exception<DataError>(m, "DataError", error.ptr()).doc() =
      "A dataset that cannot be read or used; the message names file, field and numbers.";
  py::register_exception<ConfigError>(m, "ConfigError", error.ptr()).doc() =
      "A setting or an argument that cannot be; the message names it, and what is allowed.";
  py::register_exception<CheckpointError>(m, "CheckpointError", error.ptr()).doc() =
      "A checkpoint that is missing, damaged, or of another model; the message names the file.";
  py::register_exception<NotFiniteError>(m, "NotFiniteError", error.ptr()).doc() =
      "A training met a loss or a gradient that is not finite; the message says at which step, "
      "with which batch, and how to go on.";
  // A device's memory may run out in any of our own calls: callers know torch's exception for it.
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const c10::OutOfMemoryError& e) {
      const py::object type = py::module_::import("torch").attr("OutOfMemoryError");
      PyErr_SetString(type.ptr(), e.what_without_backtrace());
    } catch (const DataError& e) {
      set_error("DataError", e);
    } catch (const ConfigError& e) {
      set_error("ConfigError", e);
    } catch (const CheckpointError& e) {
      set_error("CheckpointError", e);
    } catch (const NotFiniteError& e) {
      set_error("NotFiniteError", e);
    } catch (const Error& e) {
      set_error("Error", e);
    }
  });

  m.def("set_log_level", &set_log_level, py::arg("level"),
        "Sets the library's log level: trace, debug, info, warning, error or off.");
  m.def("log_level", &log_level, "The library's log level.");

  m.def(
      "replace_folder",
      [](const std::string& fresh, const std::string& path) {
        replace_folder_atomically(fresh, path);
      },
      py::arg("fresh"), py::arg("path"),
      "Gives a finished folder its name, beside it; a folder of that name is replaced in one "
      "step.");

  m.def("cpu_capabilities", &ops::cpu_capabilities,
        "Instruction sets whose kernels this processor can run, best first.");
  m.def("cpu_capability", &ops::cpu_capability, "The instruction set in use.");
  m.def("set_cpu_capability", &ops::set_cpu_capability, py::arg("name"),
        "Chooses the CPU kernels, for tests and comparisons.");
  m.def("set_cuda_scan_plan", &ops::set_cuda_scan_plan, py::arg("chunk_length") = 0,
        "Forces how the CUDA kernels cut a scan, for tests and measurements; 0 is the measured "
        "rule.");
  m.def("set_token_chain", &ops::set_token_chain, py::arg("on") = true,
        "Whether layers compute all that lies between two scans in one launch where they can, as "
        "they do from the start; for tests and measurements.");
  m.def("token_chain_enabled", &ops::token_chain_enabled, "Whether they do.");
}

}  // namespace dmamba::bindings
