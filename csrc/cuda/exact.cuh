// The contract's own score (vq_kernels/backends/base.py): summed in float64 without error (Ogita, Rump and
// Oishi 2005, "Sum2") and compared as pairs (v, r), then by index.
#pragma once

#include "common.cuh"

namespace vq_cuda {

struct ExactScore {
  double v, r;
};

__device__ inline void add_exactly(double& hi, double& lo, double t) {
  const double s = __dadd_rn(hi, t);
  const double b = __dsub_rn(s, hi);
  lo = __dadd_rn(lo, __dadd_rn(__dsub_rn(hi, __dsub_rn(s, b)), __dsub_rn(t, b)));
  hi = s;
}

// sum e_d^2 / 2 - sum x_d e_d in this order (cosine: the second sum alone). Infinity for a non-finite code.
template <typename E>
__device__ ExactScore exact_score(const float* x, const E* code, int dim, bool cosine) {
  double hi = 0.0, lo = 0.0;
  bool finite = true;
  for (int d = 0; d < dim; ++d) {
    const float e = to_float(code[d]);
    finite = finite && is_finite(e);
    if (!cosine) add_exactly(hi, lo, __dmul_rn(0.5, __dmul_rn(e, e)));
  }
  if (!finite) return ExactScore{static_cast<double>(kInfinity), static_cast<double>(kInfinity)};
  for (int d = 0; d < dim; ++d) add_exactly(hi, lo, -__dmul_rn(x[d], to_float(code[d])));
  const double v = __dadd_rn(hi, lo);
  const double b = __dsub_rn(v, hi);
  return ExactScore{v, __dadd_rn(__dsub_rn(hi, __dsub_rn(v, b)), __dsub_rn(lo, b))};
}

struct RescoreBest {
  ExactScore score{static_cast<double>(kInfinity), static_cast<double>(kInfinity)};
  static constexpr int kNone = 0x7fffffff;
  int index = kNone;

  __device__ void offer(const ExactScore& s, int j) {
    const bool less = s.v < score.v || (s.v == score.v && s.r < score.r);
    const bool equal = s.v == score.v && s.r == score.r;
    if (less || (equal && j < index)) {
      score = s;
      index = j;
    }
  }
};

}  // namespace vq_cuda
