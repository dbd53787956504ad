// The exact score of the contract (vq_kernels/backends/base.py) for eight rows at a time.
//
// The terms e_0^2/2, ..., e_{D-1}^2/2, -x_0 e_0, ..., -x_{D-1} e_{D-1} are exact in float64 and are
// summed in this order by Knuth's TwoSum (Ogita, Rump and Oishi 2005, "Sum2"). Plain IEEE additions
// and products: every instruction set gives the same bits.
#pragma once

#include <math.h>

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
                const double* squares_low, int64_t k, int64_t dim, int64_t* index) {
  for (int lane = 0; lane < kExactLanes; lane += EXACT_LANES)
    exact_scan_lanes(x + lane, codes, usable, squares_high, squares_low, k, dim, index + lane);
}

// The same in float64 as it comes, for all codes: scores [codes][kExactLanes], infinite if not usable.
void wide_scan_lanes(const double* x, const float* codes, const uint8_t* usable, const double* squares, int64_t k,
                     int64_t dim, double* scores) {
  constexpr int CODES = 8;
  for (int64_t j = 0; j < k; j += CODES) {
    const float* e[CODES];
    ExactD sum[CODES];
#pragma GCC unroll 8
    for (int c = 0; c < CODES; ++c) {
      const int64_t at = j + c < k ? j + c : k - 1;
      e[c] = codes + at * dim;
      sum[c] = ExactD{} + (squares ? squares[at] : 0.0);
    }
    for (int64_t d = 0; d < dim; ++d) {
      ExactD row;
      __builtin_memcpy(&row, x + d * kExactLanes, sizeof row);
#pragma GCC unroll 8
      for (int c = 0; c < CODES; ++c) sum[c] -= row * double(e[c][d]);
    }
    for (int c = 0; c < CODES && j + c < k; ++c) {
      if (!usable[j + c]) sum[c] = ExactD{} + INFINITY;
      __builtin_memcpy(scores + (j + c) * kExactLanes, &sum[c], sizeof sum[c]);
    }
  }
}

void wide_scan(const double* x, const float* codes, const uint8_t* usable, const double* squares, int64_t k,
               int64_t dim, double* scores) {
  for (int lane = 0; lane < kExactLanes; lane += EXACT_LANES)
    wide_scan_lanes(x + lane, codes, usable, squares, k, dim, scores + lane);
}

}  // namespace
}  // namespace vq_cpu
