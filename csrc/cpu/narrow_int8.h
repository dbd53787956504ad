// Int8 values of a narrow first pass, over V (one of simd_*.h) and P, the integer instructions of a set. Rows are
// stored as q + P::OFFSET, codes as p.
#pragma once

#include "cpu/narrow_integers.h"

namespace vq_cpu {
namespace {

template <class P>
struct Int8 : Integers<P> {
  static constexpr int UNIT = 4;
  static constexpr bool SEVEN_BITS = P::LEVELS < 127;

  static float levels(int64_t) { return float(P::LEVELS); }  // the largest q and p

  using Base = Integers<P>;
  using typename Base::Scales;
  struct CodeSums : Base::Lost {
    V::I sum = V::set(int32_t(0));
  };

  // Four dimensions of each row in the bytes of its lane.
  static V::I pack_row(const V::F (&value)[4], const Scales& scales, V::F& lost) {
    V::F shifted[4];
    Base::shift(value, scales, float(P::OFFSET), shifted, lost);
    return P::last_bytes(shifted);
  }
  // W dimensions of a code.
  static void pack_code(V::F value, const Scales& scales, CodeSums& sums, int32_t* words) {
    const V::I integer = Base::rounded(value, scales, sums);
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
