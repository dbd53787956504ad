// Int16 values of a narrow first pass, over V (one of simd_*.h) and P, the integer instructions of a set: as many levels
// as keep the sums of their products in 32 bits.
#pragma once

#include <math.h>

#include "cpu/narrow.h"

namespace vq_cpu {
namespace {

template <class P>
struct Int16 : P {
  static constexpr int UNIT = 2;
  static constexpr bool ROUNDS = false;

  // The largest q and p: dim * levels^2 < 2^31. More than 2^13 would gain nothing beside what float32 rounds.
  static float levels(int64_t dim) {
    const double most = sqrt(2147483647.0 / double(dim));
    return most < 8191.0 ? float(floor(most)) : 8191.0f;
  }
  static V::F scale_of_pairs(V::F row_scale, float code_scale) { return V::mul(row_scale, V::set(code_scale)); }
  static V::F add_product(V::I sum, V::F scale_of_pair, V::F rest) {
    return V::fma(P::convert(sum), scale_of_pair, rest);
  }
  struct Scales {
    V::F scale, inverse;
    explicit Scales(V::F scale) : scale(scale), inverse(V::div(V::set(1.0f), scale)) {}
  };
  struct CodeSums {
    V::F lost = V::set(0.0f), kept = V::set(0.0f);
  };

  // Two dimensions of each row in the halves of its lane. Raises `lost` by what they miss, squared.
  static V::I pack_row(const V::F (&value)[2], const Scales& scales, V::F& lost) {
    // In 2^23 .. 2^24 the last bit of a float is 1: its bits end in the integer.
    const V::F magic = V::set(0x1.8p23f);
    V::F shifted[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      shifted[i] = V::fma(value[i], scales.inverse, magic);
      const V::F rest = V::fma(V::sub(magic, shifted[i]), scales.scale, value[i]);
      lost = V::fma(rest, rest, lost);
    }
    return P::last_halves(shifted);
  }
  // W dimensions of a code.
  static void pack_code(V::F value, const Scales& scales, CodeSums& sums, int32_t* words) {
    const V::I integer = P::round(V::mul(value, scales.inverse));
    const V::F kept = V::mul(P::convert(integer), scales.scale);
    const V::F rest = V::sub(value, kept);
    sums.lost = V::fma(rest, rest, sums.lost);
    sums.kept = V::fma(kept, kept, sums.kept);
    P::store_halves(words, integer);
  }
  static int32_t start(const CodeSums&) { return 0; }
};

}  // namespace
}  // namespace vq_cpu
