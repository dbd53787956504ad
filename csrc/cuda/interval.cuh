// Which codes float32 rules out for a row that is scored again, in direct form: it needs no centre.
#pragma once

#include "certificate.cuh"

namespace vq_cuda {

// What the bounds need besides the sums.
struct IntervalFactors {
  float relative, underflow, contract;
};

__device__ inline IntervalFactors interval_factors(const ErrorFactors& f, int dim) {
  const float roundings = static_cast<float>(dim + 8) * 0x1p-24f;
  return IntervalFactors{roundings / fmaxf(1.0f - 2.0f * roundings, 0.0f),
                         static_cast<float>(dim) * 0x1p-125f, 1.01f * f.contract};
}

struct Interval {
  float lower, upper;
};

// Bounds of |x - e|^2, or of -x.e, from its float32 sum in any order. Every term of the first is positive, so
// n = D + 8 roundings bound its relative error; those of the second are relative to |x||e|. NaN and overflow
// leave the code in the race. The error is relative to computed sums: n u / (1 - n u) of what is at most
// 1 / (1 - n u) as large. The score that decides has an error of its own, `contract` times the sum of its
// absolute terms, twice that here; by |e| <= |x| + |x - e| it is within 5 |x|^2 + 4 |x - e|^2.
__device__ inline Interval interval_of_distance(const IntervalFactors& f, float sum, float x_squares) {
  sum = fminf(sum, 0x1.fffffep127f);  // an infinite sum says no more than "at least that"
  const float error = fmaf(sum, f.relative, f.underflow) + f.contract * (5.0f * x_squares + 4.0f * sum);
  return Interval{sum - error, sum + error};
}

// norms: an upper bound of |x||e|.
__device__ inline Interval interval_of_product(const IntervalFactors& f, float sum, float norms) {
  const float error = fmaf(norms, f.relative, f.underflow) + f.contract * norms;
  return Interval{sum - error, sum + error};
}

}  // namespace vq_cuda
