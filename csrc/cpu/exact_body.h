// The exact score of the contract (vq_kernels/backends/base.py) for eight rows at a time.
//
// The terms e_0^2/2, ..., e_{D-1}^2/2, -x_0 e_0, ..., -x_{D-1} e_{D-1} are exact in float64 and are
// summed in this order by Knuth's TwoSum (Ogita, Rump and Oishi 2005, "Sum2"). Plain IEEE additions
// and products: every instruction set gives the same bits.
#pragma once

#include <math.h>

#include "cpu/kernels.h"

namespace {

typedef double D8 __attribute__((vector_size(8 * VQ_EXACT_LANES)));
typedef int64_t L8 __attribute__((vector_size(8 * VQ_EXACT_LANES)));

void exact_scan(const double* x, const float* codes, const uint8_t* usable, const double* squares_high,
                const double* squares_low, int64_t k, int64_t dim, int64_t* index) {
  const D8 zero = {};
  D8 best_v = zero + INFINITY, best_r = zero + INFINITY;
  L8 best = {};
  for (int64_t j = 0; j < k; ++j) {
    if (!usable[j]) continue;
    const float* e = codes + j * dim;
    D8 high = zero + (squares_high ? squares_high[j] : 0.0);
    D8 low = zero + (squares_low ? squares_low[j] : 0.0);
    for (int64_t d = 0; d < dim; ++d) {
      D8 row;
      __builtin_memcpy(&row, x + d * VQ_EXACT_LANES, sizeof row);
      const D8 t = row * -double(e[d]);
      const D8 s = high + t;
      const D8 b = s - high;
      low += (high - (s - b)) + (t - b);
      high = s;
    }
    const D8 v = high + low;
    const D8 b = v - high;
    const D8 r = (high - (v - b)) + (low - b);
    const L8 better = (v < best_v) | ((v == best_v) & (r < best_r));
    best_v = better ? v : best_v;
    best_r = better ? r : best_r;
    best = better ? L8{} + j : best;
  }
  __builtin_memcpy(index, &best, sizeof best);
}

}  // namespace
