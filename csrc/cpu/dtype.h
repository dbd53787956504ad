// The storage types of rows and codes. All arithmetic is float32 or float64; these convert exactly on
// the way in and round to nearest even on the way out.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/vq_cpu.h"

namespace vq_cpu {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

[[maybe_unused]] inline uint32_t float_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

[[maybe_unused]] inline float bits_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

[[maybe_unused]] inline float to_float(float v) { return v; }

[[maybe_unused]] inline float to_float(Bf16 v) { return bits_float(uint32_t(v.bits) << 16); }

[[maybe_unused]] inline float to_float(F16 v) {
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t rest = v.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest < 0x400u) {  // zero or subnormal: rest * 2^-24, exact in float32
    const float magnitude = float(rest) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return bits_float(sign | ((rest << 13) + (112u << 23)));
}

[[maybe_unused]] inline void from_float(float f, float* out) { *out = f; }

[[maybe_unused]] inline void from_float(float f, Bf16* out) {
  const uint32_t u = float_bits(f);
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  out->bits = nan ? uint16_t(0x7fc0u) : uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

[[maybe_unused]] inline void from_float(float f, F16* out) {
  const uint32_t u = float_bits(f);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  uint32_t h;
  if (a > 0x7f800000u) {
    h = 0x7e00u;
  } else if (a >= 0x477ff000u) {  // rounds to 65520 or more
    h = 0x7c00u;
  } else if (a < 0x38800000u) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the low bits
    h = float_bits(bits_float(a) + 0.5f) - 0x3f000000u;
  } else {
    h = (a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13;
  }
  out->bits = uint16_t(sign | h);
}

// work(T*) with a null pointer of the type of a dtype.
template <class Work>
inline auto with_type(int dtype, Work work) {
  if (dtype == VQ_BFLOAT16) return work(static_cast<Bf16*>(nullptr));
  if (dtype == VQ_FLOAT16) return work(static_cast<F16*>(nullptr));
  return work(static_cast<float*>(nullptr));
}

[[maybe_unused]] inline int64_t element_size(int dtype) { return dtype == VQ_FLOAT32 ? 4 : 2; }

}  // namespace
}  // namespace vq_cpu
