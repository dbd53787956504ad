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
void exact_scan_lanes(const double* x, const float* codes, const uint8_t* usable, const double* squares_high,
                      const double* squares_low, int64_t k, int64_t dim, int64_t* index) {
  const ExactD zero = {};
  ExactD best_v = zero + INFINITY, best_r = zero + INFINITY;
  ExactI best = {};
  for (int64_t j = 0; j < k; ++j) {
    if (!usable[j]) continue;
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

void exact_scan(const double* x, const float* codes, const uint8_t* usable, const double* squares_high,
                const double* squares_low, int64_t k, int64_t dim, int lanes, int64_t* index) {
  for (int lane = 0; lane < lanes; lane += EXACT_LANES)
    exact_scan_lanes(x + lane, codes, usable, squares_high, squares_low, k, dim, index + lane);
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

// How far the scores of one vector's lanes with code j may be off.
inline ExactD error_lanes(const WideScan* s, int first_lane, int64_t j) {
  return s->half_squares[j] * s->error + s->lengths[j] * (load_lanes(s->norms + first_lane) * s->error);
}

// The lanes of R vectors in float64 as it comes, for all codes.
template <int R>
void wide_scan_lanes(const WideScan* s, int first_lane) {
  constexpr int CODES = EXACT_LANES, DIMS = 64;
  double wide[CODES][DIMS];  // -e, converted a vector at a time
  ExactD limit[R];
  for (int r = 0; r < R; ++r) limit[r] = ExactD{} + INFINITY;
  for (int64_t j = 0; j < s->count; j += CODES) {
    const float* e[CODES];
    ExactD sum[CODES][R];
#pragma GCC unroll 8
    for (int c = 0; c < CODES; ++c) {
      const int64_t at = j + c < s->count ? j + c : s->count - 1;
      e[c] = s->codes + at * s->dim;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[c][r] = ExactD{} + (s->l2 ? s->half_squares[at] : 0.0);
    }
    for (int64_t first = 0; first < s->dim; first += DIMS) {
      const int64_t n = s->dim - first < DIMS ? s->dim - first : DIMS;
      for (int c = 0; c < CODES; ++c)
        over_code(n, [&](int64_t d, int64_t some) {
          CodeD v;
          code_load(v, e[c] + first + d, some);
          v = -v;
          __builtin_memcpy(&wide[c][d], &v, size_t(some) * sizeof(double));
        });
      const double* x = s->x + first * kExactLanes + first_lane;
      for (int64_t d = 0; d < n; ++d) {
        ExactD row[R];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) row[r] = load_lanes(x + d * kExactLanes + r * EXACT_LANES);
#pragma GCC unroll 8
        for (int c = 0; c < CODES; ++c) {
          const ExactD code = wide[c][d] - ExactD{};  // of which nothing is left but the broadcast
#pragma GCC unroll 2
          for (int r = 0; r < R; ++r) sum[c][r] = code_fma(row[r], code, sum[c][r]);
        }
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < CODES; ++c) {
      if (j + c == s->count) break;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const int lane = first_lane + r * EXACT_LANES;
        const ExactD score = s->usable[j + c] ? sum[c][r] : ExactD{} + INFINITY;
        __builtin_memcpy(s->scores + (j + c) * kExactLanes + lane, &score, sizeof score);
        const ExactD most = score + error_lanes(s, lane, j + c);
        limit[r] = most < limit[r] ? most : limit[r];
      }
    }
  }
  __builtin_memcpy(s->limit + first_lane, limit, sizeof limit);
}

void wide_scan(const WideScan* s) {
  int lane = 0;
  for (; lane + EXACT_LANES < s->lanes; lane += 2 * EXACT_LANES) wide_scan_lanes<2>(s, lane);
  if (lane < s->lanes) wide_scan_lanes<1>(s, lane);
  for (int64_t j = 0; j < s->count; ++j) {
    unsigned bits = 0;
    for (lane = 0; lane < s->lanes; lane += EXACT_LANES) {
      const ExactD least = load_lanes(s->scores + j * kExactLanes + lane) - error_lanes(s, lane, j);
      bits |= lanes_at_most(least, load_lanes(s->limit + lane)) << lane;
    }
    s->near[j] = s->usable[j] ? uint16_t(bits & ((1u << s->lanes) - 1u)) : 0;
  }
}

}  // namespace
}  // namespace vq_cpu
