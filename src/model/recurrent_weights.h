// A model's weights as the recurrent step on the CPU reads them.
#pragma once

#include <vector>

#include "dmamba/model/dmamba.h"
#include "src/ops/cpu/packed_matrix.h"

namespace dmamba::model {

/// Float32 copies of a model's parameters, the matrices packed, in bfloat16 if that is asked for.
struct RecurrentWeights {
  struct Norm {
    torch::Tensor weight, bias;  // (d_model,)
  };

  struct Layer {
    Norm norm;
    ops::cpu::PackedMatrix in_x, in_z;       // the halves of in_proj, (d_inner, d_model) each
    torch::Tensor conv_weight, conv_bias;    // (d_conv, d_inner), (d_inner,)
    ops::cpu::PackedMatrix x_proj, dt_proj;  // (dt_rank + 2 d_state, d_inner), (d_inner, dt_rank)
    torch::Tensor delta_bias, A, D;          // (d_inner,), (d_state, d_inner), (d_inner,)
    ops::cpu::PackedMatrix out_proj;         // (d_model, d_inner)
    // With a channel mixer:
    Norm ln_2;
    ops::cpu::PackedMatrix hidden, mix;  // (4 d_model, d_model), (d_model, 4 d_model)
  };

  /// The model's layers must be `mamba`, its parameters float32 on the CPU.
  RecurrentWeights(const DMambaImpl& model, kernels::Storage storage);

  const ops::cpu::KernelTable& table;  // the kernels for which the matrices are packed
  torch::Tensor embed_timestep;        // (max_timestep, d_model)
  ops::cpu::PackedMatrix embed_return, embed_state, embed_action;
  Norm embed_ln;
  std::vector<Layer> layers;
  Norm ln_f;
  ops::cpu::PackedMatrix head;  // (act_dim, d_model)
};

}  // namespace dmamba::model
