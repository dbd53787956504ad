// The second step of a narrow search in float64, with AVX-512.
#pragma once

#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

inline __m512d widened_lanes(const float* p, int n) {
  return _mm512_cvtps_pd(n == 8 ? _mm256_loadu_ps(p) : _mm256_maskz_loadu_ps(__mmask8((1u << n) - 1u), p));
}

template <bool kL2>
inline double narrow_score_of(const float* x, const float* code, Centring centring, int64_t dim) {
  const __m512d scale = _mm512_set1_pd(double(centring.scale)), minus_half = _mm512_set1_pd(-0.5);
  __m512d even = _mm512_setzero_pd(), odd = even;
  const auto add = [&](int64_t d, int n, __m512d sum) {
    const __m512d c = centring.centre ? widened_lanes(centring.centre + d, n) : _mm512_setzero_pd();
    const __m512d e = _mm512_fmsub_pd(widened_lanes(code + d, n), scale, c);
    const __m512d row = widened_lanes(x + d, n);
    const __m512d factor = kL2 ? _mm512_fmadd_pd(minus_half, e, _mm512_fmsub_pd(row, scale, c))
                               : _mm512_mul_pd(row, scale);
    return _mm512_fmadd_pd(factor, e, sum);
  };
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    even = add(d, 8, even);
    odd = add(d + 8, 8, odd);
  }
  for (; d < dim; d += 8) even = add(d, dim - d < 8 ? int(dim - d) : 8, even);
  return _mm512_reduce_add_pd(_mm512_add_pd(even, odd));
}

// NarrowKernels::score.
double narrow_score(const float* x, const float* code, Centring centring, int64_t dim, int l2) {
  return l2 ? narrow_score_of<true>(x, code, centring, dim) : narrow_score_of<false>(x, code, centring, dim);
}

}  // namespace
}  // namespace vq_cpu
