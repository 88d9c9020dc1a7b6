// GELU(x) = x Phi(x), exact (Hendrycks and Gimpel, arXiv 1606.08415), with its slope
// Phi(x) + x Phi'(x); Phi is the normal distribution function.
#pragma once

#include "kernels/common/math.cuh"

namespace dmamba::kernels {

/// (value, slope). They share Phi = 1/2 + erf(x / sqrt(2)) / 2, right to 6e-8; normcdff, right to
/// 1e-7 of itself in the far tail too, takes twice the instructions, and those would be the bound.
__device__ __forceinline__ float2 gelu_with_slope(float x) {
  // Into [-40, 40], NaN kept: beyond, Phi is 0 or 1 and Phi' 0. No other result changes, but an
  // infinite x no longer makes NaN of its product with that zero.
  const float value_x = x < -40.0F ? -40.0F : x;  // a large x stays itself
  const float slope_x = value_x > 40.0F ? 40.0F : value_x;
  const float phi = fmaf(0.5F, erff(0.7071067811865476F * slope_x), 0.5F);
  const float bell = exp2_fast(slope_x * slope_x * (-0.5F * kLog2e));
  return {value_x * phi, fmaf(0.3989422804014327F * slope_x, bell, phi)};  // 1 / sqrt(2 pi)
}

/// The same for results that are rounded to bfloat16, by half the instructions: Phi within 3e-7, in
/// its lower tail within a hundredth of itself down to -7 (Abramowitz and Stegun, Handbook of
/// Mathematical Functions, 7.1.26, whose exponential is the slope's too). The slope of an infinite
/// x is NaN, and the value of -inf.
__device__ __forceinline__ float2 gelu_with_slope_for_bfloat16(float x) {
  const float size = fminf(fabsf(x), 14.0F);  // where bell is flushed to zero
  const float bell = exp2_fast(size * size * (-0.5F * kLog2e));
  const float t = reciprocal_fast(fmaf(0.3275911F * 0.7071067811865476F, size, 1.0F));
  float tail = fmaf(t, 0.5F * 1.061405429F, 0.5F * -1.453152027F);
  tail = fmaf(t, tail, 0.5F * 1.421413741F);
  tail = fmaf(t, tail, 0.5F * -0.284496736F);
  tail = fmaf(t, tail, 0.5F * 0.254829592F) * (t * bell);  // Phi(-|x|)
  const float phi = x < 0.0F ? tail : 1.0F - tail;
  return {x * phi, fmaf(0.3989422804014327F * x, bell, phi)};
}

}  // namespace dmamba::kernels
