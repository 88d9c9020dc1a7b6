// Finds a model's parameters by name and packs them.
#include "src/model/recurrent_weights.h"

#include "src/ops/cpu/dispatch.h"

namespace dmamba::model {
namespace {

using ops::cpu::PackedMatrix;
using torch::Tensor;

/// A model's parameters, one by one.
class Source {
 public:
  Source(const DMambaImpl& model, kernels::Storage storage, const ops::cpu::KernelTable& table)
      : parameters_(model.named_parameters()), storage_(storage), table_(table) {}

  Tensor tensor(const std::string& name) const {
    return parameters_[name].detach().clone(at::MemoryFormat::Contiguous);
  }
  PackedMatrix pack(const Tensor& weight, const Tensor& bias = {}) const {
    return {weight, bias, storage_, table_};
  }
  PackedMatrix matrix(const std::string& name) const { return pack(tensor(name + ".weight")); }
  PackedMatrix linear(const std::string& name) const {
    return pack(tensor(name + ".weight"), tensor(name + ".bias"));
  }
  RecurrentWeights::Norm norm(const std::string& name) const {
    return {tensor(name + ".weight"), tensor(name + ".bias")};
  }

 private:
  torch::OrderedDict<std::string, Tensor> parameters_;
  kernels::Storage storage_;
  const ops::cpu::KernelTable& table_;
};

RecurrentWeights::Layer make_layer(const Source& source, const std::string& block, bool mixes) {
  const std::string mamba = block + "mamba.";
  RecurrentWeights::Layer l;
  l.norm = source.norm(block + "norm_mamba");
  const auto halves = source.tensor(mamba + "in_proj.weight").chunk(2);
  l.in_x = source.pack(halves[0]);
  l.in_z = source.pack(halves[1]);
  l.conv_weight = source.tensor(mamba + "conv1d.weight").squeeze(1).t().contiguous();
  l.conv_bias = source.tensor(mamba + "conv1d.bias");
  l.x_proj = source.matrix(mamba + "x_proj");
  l.dt_proj = source.matrix(mamba + "dt_proj");
  l.delta_bias = source.tensor(mamba + "dt_proj.bias");
  l.A = source.tensor(mamba + "A_log").exp().neg().t().contiguous();
  l.D = source.tensor(mamba + "D");
  l.out_proj = source.matrix(mamba + "out_proj");
  if (mixes) {
    l.ln_2 = source.norm(block + "ln_2");
    l.hidden = source.linear(block + "mlp_channels.0");
    l.mix = source.linear(block + "mlp_channels.2");
  }
  return l;
}

}  // namespace

RecurrentWeights::RecurrentWeights(const DMambaImpl& model, kernels::Storage storage)
    : table(ops::cpu::kernels_for(kernels::Storage::kFloat32)) {
  const torch::NoGradGuard no_grad;
  const Source source(model, storage, table);
  embed_timestep = source.tensor("embed_timestep.weight");
  embed_return = source.linear("embed_return");
  embed_state = source.linear("embed_state");
  embed_action = source.linear("embed_action");
  embed_ln = source.norm("embed_ln");
  for (int64_t i = 0; i < model.config().n_layer; ++i) {
    layers.push_back(make_layer(source, "transformer.h." + std::to_string(i) + ".",
                                model.config().channel_mixing == "mlp"));
  }
  ln_f = source.norm("transformer.ln_f");
  head = source.linear("predict_action.0");
}

}  // namespace dmamba::model
