// The inside of a Mamba block: forward from ops and matrix products, backward into shared buffers.
#include "src/nn/mamba_inner.h"

#include <torch/csrc/autograd/custom_function.h>

#include "src/nn/plain_dispatch.h"
#include "src/nn/step_context.h"
#include "src/ops/calls.h"
#include "src/ops/checkpoints.h"
#include "src/ops/optional.h"

namespace dmamba::nn {
namespace {

using ops::OptionalTensor;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
namespace calls = ops::calls;
namespace cuda_only = ops::cuda_only;

/// Everything that the forward pass computes; sequences are (batch, L, ...).
struct Forward {
  Tensor u;           // d_inner
  Tensor projected;   // dt_rank + 2 d_state: dt, B, C
  Tensor delta;       // d_inner
  Tensor A;           // (d_inner, d_state)
  Tensor y;           // d_inner
  Tensor conv_state;  // undefined where it was not given, perhaps
  Tensor ssm_state, checkpoints;
  Tensor x_proj_weight, dt_proj_weight;  // in the activations' type
};

struct States {
  OptionalTensor conv, ssm;
};

/// dt, B and C side by side in x_proj's output, or their gradients.
struct Parts {
  Tensor dt, B, C;
  Parts(const Tensor& projected, int64_t d_state) {
    const int64_t dt_rank = projected.size(2) - 2 * d_state;
    dt = projected.narrow(2, 0, dt_rank);
    B = projected.narrow(2, dt_rank, d_state);
    C = projected.narrow(2, dt_rank + d_state, d_state);
  }
};

/// Fills u, conv_state, projected and delta op by op; f has both projections' weights.
void convolve_and_project(Forward& f, const Tensor& x, const MambaInnerParameters& p,
                          const ops::TokenFlags& flags, const States& states) {
  const int64_t batch = x.size(0), L = x.size(1), d_inner = x.size(2);
  std::tie(f.u, f.conv_state) = calls::causal_conv1d(x, p.conv_weight, p.conv_bias, /*silu=*/true,
                                                     flags.mask, flags.segment_starts, states.conv);
  if (cuda_only::projections_fit(f.u, f.x_proj_weight, f.dt_proj_weight)) {
    const auto out = cuda_only::projections(f.u, f.x_proj_weight, f.dt_proj_weight);
    f.projected = out.projected;
    f.delta = out.delta;
    return;
  }
  f.projected = at::mm(rows(f.u), f.x_proj_weight.t()).view({batch, L, p.x_proj_weight.size(0)});
  const Tensor dt = Parts(f.projected, p.A_log.size(1)).dt;
  f.delta = at::mm(rows(dt), f.dt_proj_weight.t()).view({batch, L, d_inner});
}

Forward run_forward(const Tensor& xz, const MambaInnerParameters& p, const ops::TokenFlags& flags,
                    const States& states, int64_t checkpoint_every) {
  const auto type = xz.scalar_type();
  const int64_t d_inner = xz.size(2) / 2;
  Forward f;
  f.x_proj_weight = cast_parameter(p.x_proj_weight, type);
  f.dt_proj_weight = cast_parameter(p.dt_proj_weight, type);
  const cuda_only::Convolution convolution{
      xz.narrow(2, 0, d_inner), p.conv_weight, p.conv_bias.value_or(Tensor()),
      flags.mask.value_or(Tensor()), flags.segment_starts.value_or(Tensor())};
  // dt_proj's bias joins inside the scan, before the softplus.
  if (!states.conv.has_value() &&
      cuda_only::convolved_projections_fit(convolution, f.x_proj_weight, f.dt_proj_weight)) {
    auto out = cuda_only::convolved_projections(convolution, f.x_proj_weight, f.dt_proj_weight);
    f.u = out.u;
    f.projected = out.projections.projected;
    f.delta = out.projections.delta;
  } else {
    convolve_and_project(f, convolution.x, p, flags, states);
  }
  const Parts parts(f.projected, p.A_log.size(1));
  f.A = decay_rates(p.A_log);
  std::tie(f.y, f.ssm_state, f.checkpoints) = calls::selective_scan(
      f.u, f.delta, f.A, parts.B, parts.C, p.D, xz.narrow(2, d_inner, d_inner), p.dt_proj_bias,
      /*delta_softplus=*/true, flags.mask, flags.segment_starts, states.ssm, checkpoint_every);
  return f;
}

/// Back through both projections: d(dt) = d(delta) dt_proj into dprojected, which has the gradients
/// of B and C; du += dprojected x_proj. For ddelta and du (batch, L, d_inner).
void projections_backward(const Tensor& ddelta, const Tensor& dprojected, const Tensor& du,
                          const Tensor& x_proj, const Tensor& dt_proj) {
  Tensor ddt = rows(dprojected.narrow(2, 0, dt_proj.size(1)));
  if (ddelta.is_cuda()) {
    at::mm_out(ddt, rows(ddelta), dt_proj);
  } else {
    // Transposed, as a wide product: on the CPU three to four times as fast as one with dt_rank
    // columns (3840 x 256 x 8, fp32, two threads: 0.2 ms for 0.7).
    ddt.copy_(at::mm(dt_proj.t(), rows(ddelta).t()).t());
  }
  rows(du).addmm_(rows(dprojected), x_proj);
}

/// Through the scan. Where the projections' kernel follows, it adds up dB and dC, and the
/// parameters' sums are left for later.
cuda_only::ScanSums scan_backward(const cuda_only::ScanBackward& s, int64_t checkpoint_every,
                                  bool projections_follow) {
  if (projections_follow) return cuda_only::scan_backward(s);
  const auto [dA, dD, ddelta_bias, no_initial_state] = calls::selective_scan_backward_out(
      s.dy, {}, s.u, s.delta, s.A, s.B, s.C, s.D, s.z, s.delta_bias, /*delta_softplus=*/true,
      ops::or_absent(s.mask), ops::or_absent(s.segment_starts), {}, s.checkpoints, checkpoint_every,
      ops::or_absent(s.y), s.du, s.ddelta, s.dB, s.dC, s.dz);
  return {dA, dD, ddelta_bias, {}, [] {}};
}

/// Asks for the gradient of dt_proj's weight (d_inner, dt_rank), for dt (tokens, dt_rank) and
/// ddelta (tokens, d_inner).
void ask_for_dt_proj(WeightGradients& weights, Tensor& gradient, const Tensor& dt,
                     const Tensor& ddelta, at::ScalarType type) {
  if (ddelta.is_cuda()) return weights.ask(gradient, ddelta, dt);
  // Transposed as above: 0.2 ms for 0.9.
  gradient = at::mm(dt.t(), ddelta).t().to(type).contiguous();
}

struct MambaInner : torch::autograd::Function<MambaInner> {
  static Tensor forward(AutogradContext* context, const Tensor& xz, const Tensor& conv_weight,
                        const OptionalTensor& conv_bias, const Tensor& x_proj_weight,
                        const Tensor& dt_proj_weight, const Tensor& dt_proj_bias,
                        const Tensor& A_log, const Tensor& D, const OptionalTensor& mask,
                        const OptionalTensor& segment_starts) {
    const PlainDispatch guard;
    const int64_t every = ops::checkpoint_interval(xz);
    const Forward f = run_forward(
        xz, {conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_proj_bias, A_log, D},
        {mask, segment_starts}, {}, every);
    const bool y_is_read = ops::backward_reads_out(xz, A_log.size(1));
    context->save_for_backward({xz, conv_weight, conv_bias.value_or(Tensor()), f.x_proj_weight,
                                f.dt_proj_weight, dt_proj_bias, D, mask.value_or(Tensor()),
                                segment_starts.value_or(Tensor()), f.u, f.projected, f.delta, f.A,
                                f.checkpoints, y_is_read ? f.y : Tensor()});
    context->saved_data["checkpoint_every"] = every;
    context->saved_data["parameter_type"] = x_proj_weight.scalar_type();
    context->saved_data["side"] = side_stream_handle();
    return f.y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_order("mamba_inner");
    const PlainDispatch guard;
    const auto saved = context->get_saved_variables();
    const auto present = [&](int i) { return ops::or_absent(saved[i]); };
    const Tensor &xz = saved[0], &conv_weight = saved[1], &x_proj_weight = saved[3],
                 &dt_proj_weight = saved[4], &dt_proj_bias = saved[5], &D = saved[6], &u = saved[9],
                 &projected = saved[10], &delta = saved[11], &A = saved[12],
                 &checkpoints = saved[13], &y = saved[14];
    const OptionalTensor conv_bias = present(2), mask = present(7), segment_starts = present(8);
    const auto parameter = context->saved_data["parameter_type"].toScalarType();
    const int64_t side = context->saved_data["side"].toInt();
    const int64_t d_inner = u.size(2);

    const auto like = [](const Tensor& t) { return at::empty(t.sizes(), t.options()); };
    const Tensor dxz = like(xz), dprojected = like(projected), du = like(u), ddelta = like(delta);
    const Parts parts(projected, A.size(1)), dparts(dprojected, A.size(1));
    // A gradient that nobody takes would be freed, and its memory reused, before it is written.
    // Counted are the inputs that are there: without a bias the next one has its number.
    const size_t after_bias = conv_bias.has_value() ? 3 : 2;
    const bool sums_taken =
        context->needs_input_grad(after_bias + 2) && context->needs_input_grad(after_bias + 4);
    // Asked once: another thread may switch TF32.
    const bool projections_follow =
        cuda_only::projections_fit(ddelta, x_proj_weight, dt_proj_weight);
    const cuda_only::ScanSums sums = scan_backward(
        {gradients[0], u, delta, A, parts.B, parts.C, D, xz.narrow(2, d_inner, d_inner),
         dt_proj_bias, saved[7], saved[8], checkpoints, y, du, ddelta, dparts.B, dparts.C,
         dxz.narrow(2, d_inner, d_inner)},
        context->saved_data["checkpoint_every"].toInt(), projections_follow);

    Tensor ddt_proj, dx_proj;
    WeightGradients weights(side, parameter);
    if (context->needs_input_grad(after_bias + 1)) {
      ask_for_dt_proj(weights, ddt_proj, rows(parts.dt), rows(ddelta), parameter);
    }
    if (projections_follow) {
      cuda_only::projections_backward(ddelta, sums.parts, dprojected, du, x_proj_weight,
                                      dt_proj_weight);
    } else {
      projections_backward(ddelta, dprojected, du, x_proj_weight, dt_proj_weight);
    }
    {
      const ops::SumsBeside beside(sums_taken ? side_stream(side) : nullptr);
      sums.add_up();  // after the projections, which the pass waits for
    }
    if (context->needs_input_grad(after_bias)) weights.ask(dx_proj, rows(dprojected), rows(u));
    weights.finish();
    Tensor dA_log;
    run_beside(side, [&] { dA_log = sums.dA * A; }, {A, sums.dA});  // dA / dA_log = A

    const bool taken =
        context->needs_input_grad(1) && (!conv_bias.has_value() || context->needs_input_grad(2));
    const ops::SumsBeside beside(taken ? side_stream(side) : nullptr);
    auto [dconv_weight, dconv_bias, no_initial_inputs] = calls::causal_conv1d_backward_out(
        du, {}, xz.narrow(2, 0, d_inner), conv_weight, conv_bias, /*silu=*/true, mask,
        segment_starts, {}, dxz.narrow(2, 0, d_inner));
    if (!conv_bias.has_value()) dconv_bias = Tensor();
    return {dxz,    dconv_weight, dconv_bias, dx_proj, ddt_proj, sums.ddelta_bias,
            dA_log, sums.dD,      Tensor(),   Tensor()};
  }
};

}  // namespace

Tensor mamba_inner(const Tensor& xz, const MambaInnerParameters& p, const ops::TokenFlags& flags) {
  if (!at::GradMode::is_enabled()) {
    const PlainDispatch guard;
    return run_forward(xz, p, flags, {}, /*checkpoint_every=*/0).y;
  }
  return MambaInner::apply(xz, p.conv_weight, p.conv_bias, p.x_proj_weight, p.dt_proj_weight,
                           p.dt_proj_bias, p.A_log, p.D, flags.mask, flags.segment_starts);
}

Tensor mamba_inner_step(const Tensor& xz, const MambaInnerParameters& p,
                        const ops::TokenFlags& flags, Tensor& conv_state, Tensor& ssm_state) {
  const torch::NoGradGuard no_grad;
  const PlainDispatch guard;
  const Forward f = run_forward(xz, p, flags, {conv_state, ssm_state}, /*checkpoint_every=*/0);
  conv_state = f.conv_state;
  ssm_state = f.ssm_state;
  return f.y;
}

}  // namespace dmamba::nn
