// float16 for the host build: storage and the two conversions that the kernels use.
#pragma once

#include <cuda_runtime.h>

struct __half {  // NOLINT: CUDA's name
  uint16_t bits;
};

inline float __half2float(__half v) {
  const unsigned sign = static_cast<unsigned>(v.bits >> 15) << 31;
  const unsigned exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  if (exponent == 31) return __uint_as_float(fraction != 0 ? 0x7fc00000u : sign | 0x7f800000u);
  if (exponent == 0) return (sign != 0 ? -0x1p-24f : 0x1p-24f) * static_cast<float>(fraction);
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
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
