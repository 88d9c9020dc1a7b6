// The exceptions of the library. Each message names the file, dataset, key or shape at fault and
// says what to do; the bindings turn them into Python exceptions of the same name.
#pragma once

#include <stdexcept>

namespace dmamba {

/// Base of every error that is the input's fault, not the library's.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A dataset file or array that cannot be used.
class DataError : public Error {
 public:
  using Error::Error;
};

/// A configuration with an unknown key, a wrong type or a value out of range.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint that is missing, damaged, or made for another model.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// A training that met a loss or a gradient that is not finite.
class NotFiniteError : public Error {
 public:
  using Error::Error;
};

}  // namespace dmamba
