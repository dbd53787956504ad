// The products of a sweep where a vector of sums is W rows of one code, over V (one of simd_*.h) and N, which
// multiplies narrow values; both included before.
#pragma once

#include "cpu/narrow.h"
#include "cpu/peak_body.h"

namespace vq_cpu {
namespace {

// GCC 11 and 12 would keep every sum twice, once for the next round of a loop and once for the code behind it, and
// move half of them through memory: half the speed. For this both are one.
inline __attribute__((always_inline)) void keep_once(V::I& sum) {
#ifdef __aarch64__
  asm("" : "+w"(sum));
#else
  asm("" : "+v"(sum));
#endif
}

// sum = start + rows . codes of one group.
template <int R>
inline __attribute__((always_inline)) void narrow_products(const int32_t* e, const int32_t* start, const int32_t* x,
                                                           int64_t steps, V::I (&sum)[R][V::PANEL]) {
#pragma GCC unroll 8
  for (int c = 0; c < V::PANEL; ++c)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r][c] = V::set(start[c]);
  for (int64_t step = 0; step < steps; ++step, e += V::PANEL, x += V::W * V::VECTORS) {
    typename V::I row[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) row[r] = V::load(x + r * V::W);
#pragma GCC unroll 8
    for (int c = 0; c < V::PANEL; ++c) {
      const typename V::I value = V::set(e[c]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        sum[r][c] = N::multiply_add(sum[r][c], row[r], value);
        keep_once(sum[r][c]);
      }
    }
  }
}

// NarrowKernels::peak.
int64_t narrow_peak(int64_t rounds) {
  return 2 * V::W * N::UNIT * peak_of(rounds, V::set(int32_t(0)), N::multiply_add);
}

// Rows and codes stay in the order in which they are packed.
constexpr int64_t kStepsOfProduct = 1;
inline void arrange_rows(int32_t*, int64_t) {}
inline void arrange_codes(int32_t*, int64_t) {}

}  // namespace
}  // namespace vq_cpu
