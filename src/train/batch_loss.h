// The loss of a batch in the arithmetic of a run.
#pragma once

#include "dmamba/model/dmamba.h"
#include "dmamba/train/batch_loader.h"
#include "src/train/precision.h"

namespace dmamba::train {

/// See DMambaImpl::loss.
inline torch::Tensor batch_loss(model::DMambaImpl& model, const Batch& batch, bool bf16) {
  const Autocast autocast(model.device().type(), bf16);
  return model.loss(batch.states, batch.actions, batch.returns_to_go, batch.timesteps, batch.mask);
}

}  // namespace dmamba::train
