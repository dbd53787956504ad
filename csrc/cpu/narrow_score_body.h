// The second step of a narrow search in float32, over V (one of simd_*.h, included before).
#pragma once

#include "cpu/kernels.h"
#include "cpu/row_lanes.h"

namespace vq_cpu {
namespace {

template <bool kL2>
inline float narrow_quick_score_of(const float* x, const float* code, Centring centring, int64_t dim) {
  const V::F scale = V::set(centring.scale), minus_half = V::set(-0.5f), zero = V::set(0.0f);
  V::F even = zero, odd = zero;  // each waits for itself alone
  const auto add = [&](V::F row, V::F e, V::F centre, V::F& sum) __attribute__((always_inline)) {
    const V::F c = V::sub(zero, centre);
    e = V::fma(e, scale, c);
    sum = V::fma(kL2 ? V::fma(minus_half, e, V::fma(row, scale, c)) : V::mul(row, scale), e, sum);
  };
  const float* c = centring.centre;
  int64_t d = 0;
  for (; d + 2 * V::W <= dim; d += 2 * V::W) {
    add(V::load(x + d), V::load(code + d), c ? V::load(c + d) : zero, even);
    add(V::load(x + d + V::W), V::load(code + d + V::W), c ? V::load(c + d + V::W) : zero, odd);
  }
  for (; d < dim; d += V::W) {
    const int n = dim - d < V::W ? int(dim - d) : V::W;
    add(V::load_n(x + d, n), V::load_n(code + d, n), c ? V::load_n(c + d, n) : zero, even);
  }
  return V::sum(V::add(even, odd));
}

// NarrowKernels::quick_score.
float narrow_quick_score(const float* x, const float* code, Centring centring, int64_t dim, int l2) {
  return l2 ? narrow_quick_score_of<true>(x, code, centring, dim)
            : narrow_quick_score_of<false>(x, code, centring, dim);
}

}  // namespace
}  // namespace vq_cpu
