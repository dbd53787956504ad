// What int8 and int16 values of a narrow first pass share, over V (one of simd_*.h) and P, the integer instructions of a
// set.
#pragma once

#include "cpu/narrow.h"

namespace vq_cpu {
namespace {

template <class P>
struct Integers : P {
  static constexpr bool ROUNDS = false, SEVEN_BITS = false;

  static V::F scale_of_pairs(V::F row_scale, float code_scale) { return V::mul(row_scale, V::set(code_scale)); }
  static V::F add_product(V::I sum, V::F scale_of_pair, V::F rest) {
    return V::fma(P::convert(sum), scale_of_pair, rest);
  }
  struct Scales {
    V::F scale, inverse;
    explicit Scales(V::F scale) : scale(scale), inverse(V::div(V::set(1.0f), scale)) {}
  };
  struct Lost {
    V::F lost = V::set(0.0f), kept = V::set(0.0f);
  };

  // UNIT dimensions of a row, shifted by `offset` whole steps so that their bits end in the integers: in 2^23 .. 2^24
  // the last bit of a float is 1. Raises `lost` by what they miss, squared.
  template <int UNIT>
  static void shift(const V::F (&value)[UNIT], const Scales& scales, float offset, V::F (&shifted)[UNIT], V::F& lost) {
    const V::F magic = V::set(0x1.8p23f + offset);
#pragma GCC unroll 4
    for (int i = 0; i < UNIT; ++i) {
      shifted[i] = V::fma(value[i], scales.inverse, magic);
      const V::F rest = V::fma(V::sub(magic, shifted[i]), scales.scale, value[i]);
      lost = V::fma(rest, rest, lost);
    }
  }
  // W dimensions of a code, as integers.
  static V::I rounded(V::F value, const Scales& scales, Lost& sums) {
    const V::I integer = P::round(V::mul(value, scales.inverse));
    const V::F kept = V::mul(P::convert(integer), scales.scale);
    const V::F rest = V::sub(value, kept);
    sums.lost = V::fma(rest, rest, sums.lost);
    sums.kept = V::fma(kept, kept, sums.kept);
    return integer;
  }
};

}  // namespace
}  // namespace vq_cpu
