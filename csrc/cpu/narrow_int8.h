// Int8 values of a narrow first pass, over V (one of simd_*.h) and P, the integer instructions of a set. Rows are
// stored as q + P::OFFSET, codes as p.
#pragma once

#include "cpu/narrow.h"

namespace vq_cpu {
namespace {

template <class P>
struct Int8 : P {
  static constexpr int UNIT = 4;
  static constexpr bool ROUNDS = false;

  static float levels(int64_t) { return float(P::LEVELS); }  // the largest q and p

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
    V::I sum = V::set(int32_t(0));
  };

  // Four dimensions of each row in the bytes of its lane. Raises `lost` by what they miss, squared.
  static V::I pack_row(const V::F (&value)[4], const Scales& scales, V::F& lost) {
    // In 2^23 .. 2^24 the last bit of a float is 1: its bits end in the integer.
    const V::F magic = V::set(0x1.8p23f + float(P::OFFSET));
    V::F shifted[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      shifted[i] = V::fma(value[i], scales.inverse, magic);
      const V::F rest = V::fma(V::sub(magic, shifted[i]), scales.scale, value[i]);
      lost = V::fma(rest, rest, lost);
    }
    return P::last_bytes(shifted);
  }
  // W dimensions of a code.
  static void pack_code(V::F value, const Scales& scales, CodeSums& sums, int32_t* words) {
    const V::I integer = P::round(V::mul(value, scales.inverse));
    const V::F kept = V::mul(P::convert(integer), scales.scale);
    const V::F rest = V::sub(value, kept);
    sums.lost = V::fma(rest, rest, sums.lost);
    sums.kept = V::fma(kept, kept, sums.kept);
    sums.sum = P::add(sums.sum, integer);
    P::store_bytes(words, integer);
  }
  static int32_t start(const CodeSums& sums) {
    int32_t lanes[V::W], total = 0;
    V::store(lanes, sums.sum);
    for (const int32_t lane : lanes) total += lane;
    return -P::OFFSET * total;
  }
};

}  // namespace
}  // namespace vq_cpu
