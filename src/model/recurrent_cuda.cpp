// What fits, the packed weights, the states.
#include "src/model/recurrent_cuda.h"

#include <algorithm>
#include <deque>
#include <string>
#include <vector>

#include "dmamba/ops/ops.h"
#include "kernels/policy_step/pack.h"

namespace dmamba::model {
namespace {

using kernels::PolicyStepModel;
using kernels::PolicyStepSizes;
using torch::Tensor;

bool is_plain(const DMambaImpl& model) {
  const config::ModelConfig& c = model.config();
  return nn::TokenKinds(c).all() && c.channel_mixing != "ssm" &&
         c.d_state == kernels::kPolicyStates && c.d_conv == kernels::kPolicyTaps && c.expand == 2 &&
         std::ranges::all_of(c.token_mixer,
                             [](const std::string& name) { return name == "mamba"; }) &&
         std::ranges::all_of(model.parameters(), [](const Tensor& t) {
           return t.is_cuda() && t.scalar_type() == torch::kFloat;
         });
}

PolicyStepSizes sizes_of(const DMambaImpl& model) {
  const config::ModelConfig& c = model.config();
  const Tensor dt_proj = model.named_parameters()["transformer.h.0.mamba.dt_proj.weight"];
  const auto narrow = [](int64_t n) { return static_cast<int>(n); };
  return {narrow(c.d_model),
          narrow(c.expand * c.d_model),
          narrow(dt_proj.size(1)),
          narrow(c.n_layer),
          c.channel_mixing == "mlp" ? narrow(4 * c.d_model) : 0,
          narrow(model.state_dim()),
          narrow(model.act_dim()),
          narrow(c.max_timestep)};
}

/// A model's parameters, copied to the host one by one.
class Source {
 public:
  explicit Source(const DMambaImpl& model) : parameters_(model.named_parameters()) {}

  const float* floats(const std::string& name) {
    return copies_.emplace_back(parameters_[name].detach().cpu().contiguous())
        .const_data_ptr<float>();
  }
  PolicyStepModel::Linear matrix(const std::string& name) {
    return {floats(name + ".weight"), nullptr};
  }
  PolicyStepModel::Linear linear(const std::string& name) {
    return {floats(name + ".weight"), floats(name + ".bias")};
  }

 private:
  torch::OrderedDict<std::string, Tensor> parameters_;
  std::deque<Tensor> copies_;
};

PolicyStepModel::Layer layer_of(Source& source, const std::string& block, bool mixes) {
  const std::string mamba = block + "mamba.";
  PolicyStepModel::Layer l{};
  l.norm = source.linear(block + "norm_mamba");
  l.in_proj = source.matrix(mamba + "in_proj");
  l.conv = source.linear(mamba + "conv1d");
  l.x_proj = source.matrix(mamba + "x_proj");
  l.dt_proj = source.linear(mamba + "dt_proj");
  l.A_log = source.floats(mamba + "A_log");
  l.D = source.floats(mamba + "D");
  l.out_proj = source.matrix(mamba + "out_proj");
  if (mixes) {
    l.mixer_norm = source.linear(block + "ln_2");
    l.wide = source.linear(block + "mlp_channels.0");
    l.back = source.linear(block + "mlp_channels.2");
  }
  return l;
}

std::vector<float> pack(const DMambaImpl& model, const PolicyStepSizes& sizes, int ranks) {
  Source source(model);
  PolicyStepModel m;
  m.embed_action = source.linear("embed_action");
  m.embed_return = source.linear("embed_return");
  m.embed_state = source.linear("embed_state");
  m.embed_ln = source.linear("embed_ln");
  for (int i = 0; i < sizes.n_layer; ++i) {
    const std::string block = "transformer.h." + std::to_string(i) + ".";
    m.layers.push_back(layer_of(source, block, sizes.hidden > 0));
  }
  m.ln_f = source.linear("transformer.ln_f");
  m.head = source.linear("predict_action.0");
  return kernels::pack_policy_step(sizes, m, ranks);
}

}  // namespace

std::unique_ptr<RecurrentCuda> RecurrentCuda::make(const DMamba& model, int64_t num_envs) {
  if (!ops::built_with_cuda() || !is_plain(*model)) return nullptr;
  const PolicyStepSizes sizes = sizes_of(*model);
  const kernels::PolicyStepPlan plan =
      ops::cuda_only::policy_step_plan(sizes, num_envs, model->device());
  if (plan.ranks == 0) return nullptr;
  return std::unique_ptr<RecurrentCuda>(new RecurrentCuda(model, sizes, plan, num_envs));
}

RecurrentCuda::RecurrentCuda(DMamba model, const PolicyStepSizes& sizes,
                             const kernels::PolicyStepPlan& plan, int64_t num_envs)
    : model_(std::move(model)), watch_(*model_) {
  step_.sizes = sizes;
  step_.plan = plan;
  step_.states = torch::zeros({sizes.n_layer, num_envs, kernels::kPolicyStateRows, sizes.d_inner},
                              torch::TensorOptions(model_->device()).dtype(torch::kFloat));
  repack_if_changed();
}

void RecurrentCuda::repack_if_changed() {
  if (!watch_.changed()) return;
  const torch::NoGradGuard no_grad;
  TORCH_CHECK(is_plain(*model_) && model_->device() == step_.states.device(),
              "Policy: the model's parameters are no longer float32 on ", step_.states.device(),
              "; make a new policy");
  const std::vector<float> packed = pack(*model_, step_.sizes, step_.plan.ranks);
  step_.packed = torch::tensor(at::ArrayRef<float>(packed), torch::kFloat).to(model_->device());
  step_.time = model_->named_parameters()["embed_timestep.weight"].detach().clone(
      at::MemoryFormat::Contiguous);
  watch_.copied();
}

void RecurrentCuda::act(const Tensor& seen, const Tensor& actions) {
  repack_if_changed();
  ops::cuda_only::policy_step(step_, seen, actions);
}

}  // namespace dmamba::model
