// Storage types on the device: conversion, and several neighbouring values at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/copy.cuh"
#include "kernels/common/types.h"

namespace dmamba::kernels {

using bfloat16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  return static_cast<T>(x);  // bfloat16: rounds to nearest even
}

/// Two values rounded, the first in the lower half.
__device__ __forceinline__ uint32_t two_words(float low, float high) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(two);
}

/// kWidth neighbouring values; aligned memory moves as one access.
template <class T, int kWidth>
struct Pack;

template <int kWidth>
struct alignas(4 * kWidth) Pack<float, kWidth> {
  float v[kWidth];

  __device__ __forceinline__ void set(const float (&in)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = in[i];
  }
  __device__ __forceinline__ void get(float (&out)[kWidth]) const {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out[i] = v[i];
  }
};

/// Two values a word, the first in the lower half: halves would cost an instruction each to move.
template <int kWidth>
struct alignas(2 * kWidth) Pack<bfloat16, kWidth> {
  static_assert(kWidth % 2 == 0);
  uint32_t v[kWidth / 2];

  __device__ __forceinline__ void set(const float (&in)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) {
      v[i] = two_words(in[2 * i], in[2 * i + 1]);
    }
  }
  __device__ __forceinline__ void get(float (&out)[kWidth]) const {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) {
      out[2 * i] = __uint_as_float(v[i] << 16);
      out[2 * i + 1] = __uint_as_float(v[i] & 0xFFFF0000U);
    }
  }
};

template <>
struct Pack<bfloat16, 1> {
  uint16_t v;

  __device__ __forceinline__ void set(const float (&in)[1]) {
    const bfloat16 rounded = __float2bfloat16_rn(in[0]);
    v = reinterpret_cast<const uint16_t&>(rounded);
  }
  __device__ __forceinline__ void get(float (&out)[1]) const {
    out[0] = __uint_as_float(static_cast<uint32_t>(v) << 16);
  }
};

/// From aligned memory.
template <class T, int kWidth>
__device__ __forceinline__ void load_pack(const T* p, float (&out)[kWidth]) {
  reinterpret_cast<const Pack<T, kWidth>*>(p)->get(out);
}

/// To aligned memory.
template <class T, int kWidth>
__device__ __forceinline__ void store_pack(T* p, const float (&in)[kWidth]) {
  Pack<T, kWidth> pack;
  pack.set(in);
  *reinterpret_cast<Pack<T, kWidth>*>(p) = pack;
}

/// 16 bytes to aligned global memory, in one access wherever it stands: nvcc 13.0 splits
/// store_pack's in a loop, where it loses the alignment.
template <class T, int kWidth>
__device__ __forceinline__ void store_whole(T* p, const float (&in)[kWidth]) {
  static_assert(kWidth * sizeof(T) == 16);
  Pack<T, kWidth> pack;
  pack.set(in);
  __stwb(reinterpret_cast<uint4*>(p), reinterpret_cast<const uint4&>(pack));
}

/// The first `count` of kWidth values of global memory, then zeros. `wide` says that memory allows
/// one access (it is aligned, and rows are a multiple of kWidth long); kWide, that this is known
/// when compiled.
template <int kWidth, bool kWide, class T>
__device__ __forceinline__ Pack<T, kWidth> fetch(const T* p, int count, bool wide) {
  Pack<T, kWidth> pack = {};
  if (kWide || wide) {
    if (count > 0) pack = *reinterpret_cast<const Pack<T, kWidth>*>(p);
  } else {
    float values[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = i < count ? to_float(p[i]) : 0.0F;
    pack.set(values);
  }
  return pack;
}

/// Stores the first `count` values likewise.
template <class T, int kWidth>
__device__ __forceinline__ void store_some(T* p, const float (&in)[kWidth], int count,
                                           bool vector) {
  if (vector) {
    if (count > 0) store_pack<T, kWidth>(p, in);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (i < count) p[i] = from_float<T>(in[i]);
    }
  }
}

/// Copies the first `count` of kWidth values, then zeros, to shared memory: in the background where
/// `vector` says that memory allows it. `global` must be readable only where count > 0.
template <int kWidth, class T>
__device__ __forceinline__ void stage(T* shared, const T* global, int count, bool vector) {
  constexpr int kBytes = kWidth * static_cast<int>(sizeof(T));
  static_assert(kBytes >= 4);
  if (vector) {
    copy_async<kBytes>(shared, global, count > 0);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) shared[i] = i < count ? global[i] : from_float<T>(0.0F);
  }
}

}  // namespace dmamba::kernels
