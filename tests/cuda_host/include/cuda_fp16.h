// float16 for the host build: storage and the two conversions that the kernels use.
#pragma once

#include <cuda_runtime.h>

struct __half {  // NOLINT: CUDA's name
  uint16_t bits;
};

// Without branches: a float of the same bits is less by 2^112, those below the smallest normal number included.
inline float __half2float(__half v) {
  const unsigned size = v.bits & 0x7fffu;
  const float scaled = __uint_as_float(size << 13) * 0x1p112f;
  const unsigned not_finite = size > 0x7c00u ? 0x7fc00000u : 0x7f800000u;
  const unsigned bits = size < 0x7c00u ? __float_as_uint(scaled) : not_finite;
  return __uint_as_float(static_cast<unsigned>(v.bits >> 15) << 31 | bits);
}

inline __half __float2half_rn(float v) {
  const uint16_t sign = static_cast<uint16_t>(__float_as_uint(v) >> 16 & 0x8000u);
  const float size = std::fabs(v);
  if (v != v) return __half{0x7fff};
  if (size >= 65520.0f) return __half{static_cast<uint16_t>(sign | 0x7c00)};
  // Units of the last place: 2^-24 below the smallest normal number 2^-14. Powers of two by their bits.
  const int exponent = size < 0x1p-14f ? -14 : static_cast<int>(__float_as_uint(size) >> 23) - 127;
  const float unit = __uint_as_float(static_cast<unsigned>(10 - exponent + 127) << 23);
  const int units = static_cast<int>(std::nearbyint(size * unit));
  return __half{static_cast<uint16_t>(sign | (((exponent + 14) << 10) + units))};
}
