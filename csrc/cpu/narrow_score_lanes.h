// The second step of a narrow search in float64, over the vectors of code_lanes.h (V included before).
#pragma once

#include "cpu/code_lanes.h"
#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

template <bool kL2>
inline double narrow_score_of(const float* x, const float* code, Centring centring, int64_t dim) {
  const double scale = double(centring.scale);
  CodeD even = {}, odd = {};
  const auto product = [&](int64_t d, int64_t n) {
    CodeD c = {}, e, row;
    if (centring.centre) code_load(c, centring.centre + d, n);
    code_load(e, code + d, n);
    code_load(row, x + d, n);
    e = e * scale - c;
    return kL2 ? CodeD(((row * scale - c) - 0.5 * e) * e) : CodeD(row * scale * e);
  };
  int64_t d = 0;
  for (; d + 2 * CODE_LANES <= dim; d += 2 * CODE_LANES) {
    even += product(d, CODE_LANES);
    odd += product(d + CODE_LANES, CODE_LANES);
  }
  for (; d < dim; d += CODE_LANES) even += product(d, dim - d < CODE_LANES ? dim - d : CODE_LANES);
  return code_sum(even + odd);
}

// NarrowKernels::score.
double narrow_score(const float* x, const float* code, Centring centring, int64_t dim, int l2) {
  return l2 ? narrow_score_of<true>(x, code, centring, dim) : narrow_score_of<false>(x, code, centring, dim);
}

}  // namespace
}  // namespace vq_cpu
