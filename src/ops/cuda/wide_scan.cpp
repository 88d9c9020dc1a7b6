// The selective scan with more states than one launch takes: groups of states, in fp32, correct
// rather than fast.
//
// States don't mix, so y = (sum_g C_g h_g + D u) SiLU(z) with one scan a group g, and the gradients
// of what the groups share (u, delta, delta_bias) are the groups' sums, in the groups' order. D and
// z, which see the sum, are ATen's.
#include <ATen/ATen.h>

#include <algorithm>

#include "src/ops/cuda/scan.h"
#include "src/ops/tensors.h"

namespace dmamba::ops::cuda {
namespace {

using at::Tensor;

OptionalTensor states(const OptionalTensor& t, int64_t axis, int64_t begin, int64_t count) {
  return present(t) ? OptionalTensor(t->narrow(axis, begin, count)) : std::nullopt;
}

/// Copies in fp32 of what the groups share, without D and z.
ScanInputs shared_inputs(const ScanInputs& in) {
  ScanInputs shared = in;
  for (Tensor* t : {&shared.u, &shared.delta, &shared.B, &shared.C}) *t = t->to(at::kFloat);
  shared.D = shared.z = std::nullopt;
  return shared;
}

/// A group of states, and the part of the checkpoints that is its own.
struct Group {
  int64_t begin, count;
  ScanInputs in;
  Tensor checkpoints;
};

/// Calls f(group) for every group of states in order.
template <class F>
void for_groups(const ScanInputs& shared, const Tensor& checkpoints, int64_t checkpoint_every,
                const F& f) {
  for (int64_t begin = 0; begin < shared.d_state(); begin += kernels::kScanMaxStates) {
    const int64_t count = std::min(kernels::kScanMaxStates, shared.d_state() - begin);
    Group group{begin, count, shared, {}};
    group.in.A = shared.A.narrow(1, begin, count);
    group.in.B = shared.B.narrow(2, begin, count);
    group.in.C = shared.C.narrow(2, begin, count);
    group.in.initial_state = states(shared.initial_state, 2, begin, count);
    if (checkpoint_every > 0) {
      group.checkpoints =
          checkpoints.view(-1).narrow(0, checkpoint_numel(shared, begin, checkpoint_every),
                                      checkpoint_numel(shared, count, checkpoint_every));
    }
    f(group);
  }
}

/// sum_g C_g h_g + D u, (batch, L, d_inner) fp32; fills last_state and checkpoints.
Tensor ungated(const char* op, const ScanInputs& shared, const OptionalTensor& D,
               const ScanOutputs& out, int64_t checkpoint_every) {
  Tensor y;
  for_groups(shared, out.checkpoints, checkpoint_every, [&](const Group& group) {
    Tensor part = at::empty(shared.u.sizes(), shared.u.options());
    scan_forward(op, group.in,
                 {part, out.last_state.narrow(2, group.begin, group.count), group.checkpoints},
                 checkpoint_every);
    y = y.defined() ? y.add_(part) : part;
  });
  return present(D) ? y.addcmul_(shared.u, *D) : y;
}

/// Gradients of one group of states, all in fp32; what the groups share is of this group alone.
ScanGradients group_gradients(const ScanInputs& in, const Tensor& dinitial_state) {
  const auto empty = [](const Tensor& t) { return at::empty(t.sizes(), t.options()); };
  ScanGradients g;
  g.du = empty(in.u);
  g.ddelta = empty(in.delta);
  g.dA = empty(in.A);
  g.dB = empty(in.B);
  g.dC = empty(in.C);
  if (present(in.delta_bias)) g.ddelta_bias = empty(*in.delta_bias);
  g.dinitial_state = dinitial_state;
  return g;
}

}  // namespace

void wide_scan_forward(const char* op, const ScanInputs& in, const ScanOutputs& out,
                       int64_t checkpoint_every) {
  const ScanInputs shared = shared_inputs(in);
  const Tensor y = ungated(op, shared, in.D, out, checkpoint_every);
  out.out.copy_(present(in.z) ? y * at::silu(in.z->to(at::kFloat)) : y);
}

void wide_scan_backward(const char* op, const ScanInputs& in, const Tensor& dout,
                        const OptionalTensor& dlast_state, const ScanKept& kept,
                        const ScanGradients& gradients) {
  const ScanInputs shared = shared_inputs(in);
  Tensor dy = dout.to(at::kFloat);
  if (present(in.z)) {
    const Tensor z = in.z->to(at::kFloat);
    const Tensor state = empty_state(shared.u, in.u.size(0), in.u.size(2), in.d_state());
    const Tensor y = ungated(op, shared, in.D, {{}, state, {}}, /*checkpoint_every=*/0);
    gradients.dz.copy_(at::silu_backward(dy * y, z));
    dy = dy * at::silu(z);
  }
  Tensor du = present(in.D) ? dy * *in.D : at::zeros_like(shared.u);
  Tensor ddelta = at::zeros_like(shared.delta);
  if (present(in.D)) gradients.dD.copy_((dy * shared.u).sum(at::IntArrayRef({0, 1})));
  if (gradients.ddelta_bias.defined()) gradients.ddelta_bias.zero_();
  for_groups(shared, kept.checkpoints, kept.checkpoint_every, [&](const Group& group) {
    Tensor dinitial_state;
    if (gradients.dinitial_state.defined()) {
      dinitial_state = gradients.dinitial_state.narrow(2, group.begin, group.count);
    }
    const ScanGradients g = group_gradients(group.in, dinitial_state);
    scan_backward(op, group.in, dy, states(dlast_state, 2, group.begin, group.count),
                  {group.checkpoints, kept.checkpoint_every, {}}, g);
    du.add_(g.du);
    ddelta.add_(g.ddelta);
    gradients.dA.narrow(1, group.begin, group.count).copy_(g.dA);
    gradients.dB.narrow(2, group.begin, group.count).copy_(g.dB);
    gradients.dC.narrow(2, group.begin, group.count).copy_(g.dC);
    if (g.ddelta_bias.defined()) gradients.ddelta_bias.add_(g.ddelta_bias);
  });
  gradients.du.copy_(du);
  gradients.ddelta.copy_(ddelta);
}

}  // namespace dmamba::ops::cuda
