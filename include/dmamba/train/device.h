// Where a run computes, and in which arithmetic.
#pragma once

#include <c10/core/Device.h>

#include <string>

namespace dmamba::train {

/// The device that a choice of the configuration stands for: cpu; cuda, torch's current CUDA
/// device; auto, cuda where the library was built with CUDA ops and torch finds a device, else cpu.
/// Throws ConfigError naming `key` where cuda is chosen and there is none: which of the two is
/// missing, and what to do.
c10::Device resolve_device(const std::string& choice, const std::string& key);

/// Throws ConfigError where `training.precision` names arithmetic that the device does not have.
void check_precision(const std::string& precision, c10::Device device);

}  // namespace dmamba::train
