// The exact score of the contract (vq_kernels/backends/base.py) for kExactLanes rows at a time.
//
// The terms e_0^2/2, ..., e_{D-1}^2/2, -x_0 e_0, ..., -x_{D-1} e_{D-1} are exact in float64 and are
// summed in this order by Knuth's TwoSum (Ogita, Rump and Oishi 2005, "Sum2"). Plain IEEE additions
// and products: every instruction set gives the same bits.
#pragma once

#include <math.h>

#include "cpu/code_lanes.h"
#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

constexpr int EXACT_LANES = V::W / 2;

typedef double ExactD __attribute__((vector_size(8 * EXACT_LANES)));
typedef int64_t ExactI __attribute__((vector_size(8 * EXACT_LANES)));

// The lanes of one vector.
void exact_scan_lanes(const double* x, const float* codes, const int32_t* open, const double* squares_high,
                      const double* squares_low, int64_t count, int64_t dim, int64_t* index) {
  const ExactD zero = {};
  ExactD best_v = zero + INFINITY, best_r = zero + INFINITY;
  ExactI best = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t j = open[i];
    const float* e = codes + j * dim;
    ExactD high = zero + (squares_high ? squares_high[j] : 0.0);
    ExactD low = zero + (squares_low ? squares_low[j] : 0.0);
    for (int64_t d = 0; d < dim; ++d) {
      ExactD row;
      __builtin_memcpy(&row, x + d * kExactLanes, sizeof row);
      const ExactD t = row * -double(e[d]);
      const ExactD s = high + t;
      const ExactD b = s - high;
      low += (high - (s - b)) + (t - b);
      high = s;
    }
    const ExactD v = high + low;
    const ExactD b = v - high;
    const ExactD r = (high - (v - b)) + (low - b);
    const ExactI better = (v < best_v) | ((v == best_v) & (r < best_r));
    best_v = better ? v : best_v;
    best_r = better ? r : best_r;
    best = better ? ExactI{} + j : best;
  }
  __builtin_memcpy(index, &best, sizeof best);
}

void exact_scan(const double* x, const float* codes, const int32_t* open, const double* squares_high,
                const double* squares_low, int64_t count, int64_t dim, int lanes, int64_t* index) {
  for (int lane = 0; lane < lanes; lane += EXACT_LANES)
    exact_scan_lanes(x + lane, codes, open, squares_high, squares_low, count, dim, index + lane);
}

// Lanes in which a <= b, as bits.
inline unsigned lanes_at_most(ExactD a, ExactD b) {
#if defined(VQ_LANES_AVX512)
  return _mm512_cmp_pd_mask(__m512d(a), __m512d(b), _CMP_LE_OQ);
#elif defined(VQ_LANES_AVX2)
  return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(__m256d(a), __m256d(b), _CMP_LE_OQ)));
#else
  unsigned bits = 0;
  for (int lane = 0; lane < EXACT_LANES; ++lane) bits |= unsigned(a[lane] <= b[lane]) << lane;
  return bits;
#endif
}

inline ExactD load_lanes(const double* p) {
  ExactD v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// Codes whose scores stand in registers together, and the dimensions that are converted for them at a time.
constexpr int WIDE_CODES = EXACT_LANES, WIDE_DIMS = 64;

// Adds the products of codes j .. j + n - 1 with the lanes of R vectors.
template <int R>
inline __attribute__((always_inline)) void add_wide_products(const WideScan* s, int first_lane, int64_t j, int n,
                                                             ExactD (&sum)[WIDE_CODES][R]) {
  double wide[WIDE_CODES][WIDE_DIMS];  // -e, converted a vector at a time
  for (int64_t first = 0; first < s->dim; first += WIDE_DIMS) {
    const int64_t dims = s->dim - first < WIDE_DIMS ? s->dim - first : WIDE_DIMS;
    for (int c = 0; c < WIDE_CODES; ++c) {
      const float* e = s->codes + (j + (c < n ? c : 0)) * s->dim + first;
      over_code(dims, [&](int64_t d, int64_t some) {
        CodeD v;
        code_load(v, e + d, some);
        v = -v;
        __builtin_memcpy(&wide[c][d], &v, sizeof v);
      });
    }
    const double* x = s->x + first * kExactLanes + first_lane;
    for (int64_t d = 0; d < dims; ++d) {
      ExactD row[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) row[r] = load_lanes(x + d * kExactLanes + r * EXACT_LANES);
#pragma GCC unroll 8
      for (int c = 0; c < WIDE_CODES; ++c) {
        const ExactD code = wide[c][d] - ExactD{};  // of which nothing is left but the broadcast
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) sum[c][r] = code_fma(row[r], code, sum[c][r]);
      }
    }
  }
}

// The lanes of R vectors in float64 as it comes, for all codes. What a group of codes may reach at least is kept only
// where that is not above what the row's best reaches at most.
template <int R>
void wide_scan_lanes(const WideScan* s, int first_lane) {
  ExactD limit[R], norm[R];
  for (int r = 0; r < R; ++r) {
    limit[r] = ExactD{} + INFINITY;
    norm[r] = load_lanes(s->norms + first_lane + r * EXACT_LANES) * s->error;
  }
  int64_t kept = 0, end = 0;
  int span = 0;
  for (int64_t j = 0;; j += WIDE_CODES) {
    if (j >= end) {
      if (span == s->span_count) break;
      j = s->spans[2 * span];
      end = s->spans[2 * span++ + 1];
    }
    const int n = int(end - j < WIDE_CODES ? end - j : int64_t(WIDE_CODES));
    ExactD sum[WIDE_CODES][R], least[R];
#pragma GCC unroll 8
    for (int c = 0; c < WIDE_CODES; ++c)
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[c][r] = (s->l2 ? s->half_squares[j + (c < n ? c : 0)] : 0.0) - ExactD{};
    add_wide_products<R>(s, first_lane, j, n, sum);
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) least[r] = ExactD{} + INFINITY;
#pragma GCC unroll 8
    for (int c = 0; c < WIDE_CODES; ++c) {
      const bool usable = c < n && s->usable[j + c];
      const int64_t at = j + (c < n ? c : 0);
      const ExactD length = s->lengths[at] - ExactD{}, half = s->half_squares[at] * s->error - ExactD{};
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const ExactD score = usable ? sum[c][r] : ExactD{} + INFINITY, error = code_fma(length, norm[r], half);
        const ExactD most = score + error;
        sum[c][r] = score - error;
        limit[r] = most < limit[r] ? most : limit[r];
        least[r] = sum[c][r] < least[r] ? sum[c][r] : least[r];
      }
    }
    unsigned open = 0;
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) open |= lanes_at_most(least[r], limit[r]);
    if (!open) continue;
    s->groups[2 * kept] = int32_t(j);
    s->groups[2 * kept + 1] = n;
    __builtin_memcpy(s->scores + kept++ * WIDE_CODES * R * EXACT_LANES, sum, sizeof sum);
  }
  __builtin_memcpy(s->limit + first_lane, limit, sizeof limit);
  const unsigned in_use = (1u << s->lanes) - 1u;
  for (int64_t g = 0; g < kept; ++g) {
    const double* low = s->scores + g * WIDE_CODES * R * EXACT_LANES;
    for (int c = 0; c < s->groups[2 * g + 1]; ++c) {
      unsigned bits = 0;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r)
        bits |= lanes_at_most(load_lanes(low + (c * R + r) * EXACT_LANES), limit[r]) << (first_lane + r * EXACT_LANES);
      const int64_t code = s->groups[2 * g] + c;
      if (s->usable[code]) s->near[s->index ? s->index[code] : code] |= uint16_t(bits & in_use);
    }
  }
}

int64_t wide_scan(const WideScan* s) {
  memset(s->near, 0, size_t(s->count) * sizeof s->near[0]);
  int lane = 0;
  for (; lane + EXACT_LANES < s->lanes; lane += 2 * EXACT_LANES) wide_scan_lanes<2>(s, lane);
  if (lane < s->lanes) wide_scan_lanes<1>(s, lane);
  int64_t n = 0;
  for (int64_t j = 0; j < s->count; ++j) {
    s->open[n] = int32_t(j);
    n += s->near[j] != 0;
  }
  return n;
}

}  // namespace
}  // namespace vq_cpu
