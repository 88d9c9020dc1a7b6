// The schemas of the ops: what torch's dispatcher, torch.compile and C++ callers see.
//
// `checkpoint_every` is the caller's choice because the shape of `checkpoints` follows from it: the
// autograd layer asks for them, inference does not (0). Gradients of absent inputs are empty
// tensors.
//
// selective_scan_backward reads `out`, the forward pass's, for dz: on CUDA it has to be given where
// z is, up to 128 states; elsewhere it is not read.
//
// The *_backward_out ops are the backward ops that write the gradients of activations where the
// caller says, so that the gradients of the halves of one projection are written side by side and
// need no `cat`. Such an output has the sizes, dtype and device of its input and a contiguous last
// axis; its other strides are free, and it may be a part of a larger tensor. It is written whole
// and must not overlap an input or another output. `dz` is given exactly where z is.
#include <torch/library.h>

TORCH_LIBRARY(dmamba, m) {
  m.def(
      "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None, "
      "Tensor? z=None, Tensor? delta_bias=None, bool delta_softplus=False, Tensor? mask=None, "
      "Tensor? segment_starts=None, Tensor? initial_state=None, int checkpoint_every=0) "
      "-> (Tensor out, Tensor last_state, Tensor checkpoints)");
  m.def(
      "selective_scan_backward(Tensor dout, Tensor? dlast_state, Tensor u, Tensor delta, Tensor A, "
      "Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, bool delta_softplus, "
      "Tensor? mask, Tensor? segment_starts, Tensor? initial_state, Tensor checkpoints, "
      "int checkpoint_every, Tensor? out=None) -> (Tensor du, Tensor ddelta, Tensor dA, Tensor dB, "
      "Tensor dC, Tensor dD, Tensor dz, Tensor ddelta_bias, Tensor dinitial_state)");
  m.def(
      "selective_scan_backward_out(Tensor dout, Tensor? dlast_state, Tensor u, Tensor delta, "
      "Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
      "bool delta_softplus, Tensor? mask, Tensor? segment_starts, Tensor? initial_state, "
      "Tensor checkpoints, int checkpoint_every, Tensor? out, Tensor(a!) du, Tensor(b!) ddelta, "
      "Tensor(c!) dB, Tensor(d!) dC, Tensor(e!)? dz) "
      "-> (Tensor dA, Tensor dD, Tensor ddelta_bias, Tensor dinitial_state)");
  m.def(
      "selective_state_update(Tensor(a!) state, Tensor u, Tensor delta, Tensor A, Tensor B, "
      "Tensor C, Tensor? D=None, Tensor? z=None, Tensor? delta_bias=None, "
      "bool delta_softplus=False) -> Tensor");
  m.def(
      "causal_conv1d(Tensor x, Tensor weight, Tensor? bias=None, bool silu=True, "
      "Tensor? mask=None, Tensor? segment_starts=None, Tensor? initial_state=None) "
      "-> (Tensor out, Tensor last_state)");
  m.def(
      "causal_conv1d_backward(Tensor dout, Tensor? dlast_state, Tensor x, Tensor weight, "
      "Tensor? bias, bool silu, Tensor? mask, Tensor? segment_starts, Tensor? initial_state) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial_state)");
  m.def(
      "causal_conv1d_backward_out(Tensor dout, Tensor? dlast_state, Tensor x, Tensor weight, "
      "Tensor? bias, bool silu, Tensor? mask, Tensor? segment_starts, Tensor? initial_state, "
      "Tensor(a!) dx) -> (Tensor dweight, Tensor dbias, Tensor dinitial_state)");
  m.def(
      "causal_conv1d_update(Tensor(a!) state, Tensor x, Tensor weight, Tensor? bias=None, "
      "bool silu=True) -> Tensor");
  m.def("gelu(Tensor x) -> Tensor");
  m.def("gelu_backward(Tensor dy, Tensor x) -> Tensor");
  // y = gelu(x + bias) for x (rows, channels) contiguous and bias (channels,); x becomes the slope
  // gelu'(x + bias), which is all that the backward pass needs.
  m.def("bias_gelu_(Tensor(a!) x, Tensor bias) -> Tensor y");
  // dy *= slope, both (rows, channels) contiguous; returns the products' sum over the rows,
  // (channels,) in the parameters' dtype.
  m.def("multiply_sum_(Tensor(a!) dy, Tensor slope) -> Tensor");
  // Linear in x: its own derivative.
  m.def("dropout(Tensor x, float p, int key, int first=0) -> Tensor");
}
