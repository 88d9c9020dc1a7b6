// What exists on CUDA alone, in a library that was built without it.
#include "src/ops/cuda_only.h"

#include <string>

#include "dmamba/common/error.h"
#include "src/ops/graph.h"

namespace dmamba::ops {
namespace {

[[noreturn]] void refuse(const char* what) {
  throw Error(std::string(what) +
              ": this dmamba was built without CUDA kernels; dmamba info says why");
}

}  // namespace

namespace cuda_only {

Tensor dropout(const Tensor&, const Dropout&) { refuse("dropout"); }
Tensor decay_rates(const Tensor&) { refuse("decay_rates"); }
void write_mirrors(const std::vector<Mirrored>&) { refuse("write_mirrors"); }
Tensor sum_parts(const Tensor&) { refuse("sum_parts"); }
bool weight_gradient_fits(const Tensor&, const Tensor&) { return false; }
bool weight_gradient_pays(const Tensor&, const Tensor&) { return false; }
void weight_gradients(const std::vector<WeightGradient>&) { refuse("weight_gradients"); }
bool linear_fits(const Tensor&, const Tensor&) { return false; }
std::tuple<Tensor, Tensor> linear_gelu(const Tensor&, const Tensor&, const Tensor&) {
  refuse("linear_gelu");
}
std::tuple<Tensor, Tensor> linear_slope(const Tensor&, const Tensor&, const Tensor&) {
  refuse("linear_slope");
}
bool linear_product_fits(const Tensor&, const Tensor&) { return false; }
Tensor linear_product(const Tensor&, const Tensor&, Terms) { refuse("linear_product"); }
AddNorm add_norm(const Tensor&, const Tensor&, const Tensor&, const Dropout&, const Tensor&,
                 const Tensor&, double, at::ScalarType) {
  refuse("add_norm");
}
AddNormGradients add_norm_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                   const Tensor&, const Dropout&, bool, bool) {
  refuse("add_norm_backward");
}
bool projections_fit(const Tensor&, const Tensor&, const Tensor&) { return false; }
Projections projections(const Tensor&, const Tensor&, const Tensor&) { refuse("projections"); }
bool convolved_projections_fit(const Convolution&, const Tensor&, const Tensor&) { return false; }
ConvolvedProjections convolved_projections(const Convolution&, const Tensor&, const Tensor&) {
  refuse("convolved_projections");
}
ScanSums scan_backward(const ScanBackward&) { refuse("scan_backward"); }
void projections_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                          const Tensor&) {
  refuse("projections_backward");
}
bool token_chain_fits(const Tensor&, int64_t, int64_t, int64_t) { return false; }
TokenChain token_chain(const TokenChainInputs&, bool) { refuse("token_chain"); }
TokenChainGradients token_chain_backward(const Tensor&, const Tensor&, const TokenChainInputs&,
                                         const TokenChain&) {
  refuse("token_chain_backward");
}
Embedding embed(const EmbeddingInputs&) { refuse("embed"); }
EmbeddingNormGradients embed_norm_backward(const Tensor&, const Tensor&, const Embedding&,
                                           const EmbeddingInputs&) {
  refuse("embed_backward");
}
EmbeddingGradients embed_gradients(const EmbeddingNormGradients&, const EmbeddingInputs&) {
  refuse("embed_backward");
}
ActionHead action_head(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  refuse("action_head");
}
std::array<Tensor, 2> action_head_backward(const Tensor&, const Tensor&, const Tensor&,
                                           const Tensor&) {
  refuse("action_head_backward");
}
void begin_step(const BeginStep&, const StepState&, const TrajectoryTensors*, const BatchTensors&) {
  refuse("begin_step");
}
void draw_strips(const BeginStep&, const StepState&, const GameTensors&, const StripTensors&) {
  refuse("draw_strips");
}
GameEmbedding game_embed(const GameInputs&) { refuse("game_embed"); }
GameEmbeddingGradients game_embed_backward(const Tensor&, const GameInputs&) {
  refuse("game_embed_backward");
}
kernels::PolicyStepPlan policy_step_plan(const kernels::PolicyStepSizes&, int64_t, at::Device) {
  refuse("policy_step");
}
void policy_step(const PolicyStep&, const Tensor&, const Tensor&) { refuse("policy_step"); }
Tensor fold_frames(const Tensor&, at::ScalarType) { refuse("fold_frames"); }
Tensor bias_relu_fold(const Tensor&, const Tensor&, int64_t) { refuse("bias_relu_fold"); }
Tensor first_convolution(const Tensor&, const Tensor&, const Tensor&) {
  refuse("first_convolution");
}
Tensor first_convolution_backward(const Tensor&, const Tensor&, const Tensor&) {
  refuse("first_convolution_backward");
}
BiasReluGradients bias_relu_unfold(const Tensor&, const Tensor&, int64_t) {
  refuse("bias_relu_unfold");
}
Tensor adamw(const AdamWTensors&, const AdamWOptions&, const Tensor&, const StepState&) {
  refuse("adamw");
}

}  // namespace cuda_only

int64_t free_memory(at::Device) { refuse("free_memory"); }

struct Graph::Impl {};
Graph::Graph() { refuse("Graph"); }
Graph::~Graph() = default;
void Graph::capture(const std::function<void()>&) { refuse("Graph"); }
void Graph::replay() { refuse("Graph"); }

struct SideStream::Impl {};
SideStream::SideStream(at::Device) { refuse("SideStream"); }
SideStream::~SideStream() = default;
// NOLINTNEXTLINE(performance-unnecessary-value-param): src/ops/cuda keeps them
void SideStream::run(const std::function<void()>&, std::vector<at::Tensor>) {
  refuse("SideStream");
}
at::Tensor SideStream::weight_gradient(const at::Tensor&, const at::Tensor&) {
  refuse("SideStream");
}
void SideStream::launch_weight_gradients() { refuse("SideStream"); }
void SideStream::abandon() noexcept {}
void SideStream::expect_other_weights() { refuse("SideStream"); }
void SideStream::join() { refuse("SideStream"); }

struct WorkStream::Impl {};
WorkStream::WorkStream(at::Device) { refuse("WorkStream"); }
WorkStream::~WorkStream() = default;
struct WorkStream::Scope::Impl {};
WorkStream::Scope::Scope(WorkStream&) { refuse("WorkStream"); }
WorkStream::Scope::~Scope() = default;

}  // namespace dmamba::ops
