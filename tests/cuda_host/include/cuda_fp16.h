// float16 for the host build: storage and the two conversions that the kernels use.
#pragma once

#include <cuda_runtime.h>

struct __half {  // NOLINT: CUDA's name
  uint16_t bits;
};

inline float __half2float(__half v) {
  const float sign = v.bits >> 15 ? -1.0f : 1.0f;
  const int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  if (exponent == 31) return fraction != 0 ? __uint_as_float(0x7fc00000u) : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

inline __half __float2half_rn(float v) {
  const uint16_t sign = static_cast<uint16_t>(__float_as_uint(v) >> 16 & 0x8000u);
  const float size = std::fabs(v);
  if (v != v) return __half{0x7fff};
  if (size >= 65520.0f) return __half{static_cast<uint16_t>(sign | 0x7c00)};
  // Units of the last place: 2^-24 below the smallest normal number 2^-14.
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return __half{static_cast<uint16_t>(sign | (((exponent + 14) << 10) + units))};
}
