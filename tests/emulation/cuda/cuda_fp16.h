// Half precision as CUDA names it.
#pragma once

#include "tests/emulation/cuda/vectors.h"

struct alignas(4) __half2 {
  _Float16 x, y;
};

inline __half2 __floats2half2_rn(float x, float y) {
  return {static_cast<_Float16>(x), static_cast<_Float16>(y)};
}
inline float2 __half22float2(__half2 v) {
  return {static_cast<float>(v.x), static_cast<float>(v.y)};
}
