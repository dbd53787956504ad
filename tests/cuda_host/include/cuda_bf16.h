// bfloat16 for the host build: storage and the two conversions that the kernels use.
#pragma once

#include <cuda_runtime.h>

struct __nv_bfloat16 {  // NOLINT: CUDA's name
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 v) {
  return __uint_as_float(static_cast<unsigned>(v.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const unsigned bits = __float_as_uint(v);
  if (v != v) return __nv_bfloat16{0x7fff};
  return __nv_bfloat16{static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
