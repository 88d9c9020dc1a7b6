// Elementary functions in fp32: the special-function unit where its 2 ulp do, polynomials
// elsewhere.
#pragma once

#include "kernels/common/instructions.cuh"

namespace dmamba::kernels {

constexpr float kLog2e = 1.4426950408889634F;
constexpr float kLn2 = 0.6931471805599453F;

/// log(1 + e) for e in [0, 1], relative error 1.4e-7: a minimax polynomial of degree 9 times e.
/// log(1 + e) through lg2 would lose the digits of small e, and with them those of small steps.
__device__ __forceinline__ float log1p_unit(float e) {
  float p = -0.0032440233044326305F;
  p = fmaf(p, e, 0.019851453602313995F);
  p = fmaf(p, e, -0.05695951730012894F);
  p = fmaf(p, e, 0.10603653639554977F);
  p = fmaf(p, e, -0.15305592119693756F);
  p = fmaf(p, e, 0.1967593878507614F);
  p = fmaf(p, e, -0.24954134225845337F);
  p = fmaf(p, e, 0.3332996368408203F);
  p = fmaf(p, e, -0.4999990165233612F);
  p = fmaf(p, e, 1.0F);
  return p * e;
}

struct Softplus {
  float value;       // log(1 + exp(x))
  float derivative;  // sigmoid(x)
};

__device__ __forceinline__ float softplus(float x) {
  return fmaxf(x, 0.0F) + log1p_unit(exp2_fast(-fabsf(x) * kLog2e));
}

__device__ __forceinline__ Softplus softplus_with_derivative(float x) {
  const float e = exp2_fast(-fabsf(x) * kLog2e);
  return {fmaxf(x, 0.0F) + log1p_unit(e), (x >= 0.0F ? 1.0F : e) * reciprocal_fast(1.0F + e)};
}

__device__ __forceinline__ float sigmoid(float x) {
  return reciprocal_fast(1.0F + exp2_fast(-x * kLog2e));
}

struct Sigmoid {
  float value;       // sigmoid(x)
  float complement;  // 1 - sigmoid(x), not by a difference
};

__device__ __forceinline__ Sigmoid sigmoid_with_complement(float x) {
  const float e = exp2_fast(-x * kLog2e), s = reciprocal_fast(1.0F + e);
  return {s, fminf(e * s, 1.0F)};  // 1 where e is infinite and e s is no number
}

}  // namespace dmamba::kernels
