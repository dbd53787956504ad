// Int16 values of a narrow first pass, over V (one of simd_*.h) and P, the integer instructions of a set: as many levels
// as keep the sums of their products in 32 bits.
#pragma once

#include <math.h>

#include "cpu/narrow_integers.h"

namespace vq_cpu {
namespace {

template <class P>
struct Int16 : Integers<P> {
  static constexpr int UNIT = 2;

  // The largest q and p: dim * levels^2 < 2^31. More than 2^13 would gain nothing beside what float32 rounds.
  static float levels(int64_t dim) {
    const double most = sqrt(2147483647.0 / double(dim));
    return most < 8191.0 ? float(floor(most)) : 8191.0f;
  }
  using Base = Integers<P>;
  using typename Base::Scales;
  using CodeSums = typename Base::Lost;

  // Two dimensions of each row in the halves of its lane.
  static V::I pack_row(const V::F (&value)[2], const Scales& scales, V::F& lost) {
    V::F shifted[2];
    Base::shift(value, scales, 0.0f, shifted, lost);
    return P::last_halves(shifted);
  }
  // W dimensions of a code.
  static void pack_code(V::F value, const Scales& scales, CodeSums& sums, int32_t* words) {
    P::store_halves(words, Base::rounded(value, scales, sums));
  }
  static int32_t start(const CodeSums&) { return 0; }
};

}  // namespace
}  // namespace vq_cpu
