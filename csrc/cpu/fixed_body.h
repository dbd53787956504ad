// Rows and codes in whole numbers that wrap around, over vectors of the size of V's (one of simd_*.h, included before).
#pragma once

#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

// Lanes of words as wide as the differences of scores ask for.
struct Narrow {
  static constexpr int LANES = V::W;
  typedef uint32_t Value;
  typedef uint32_t Word __attribute__((vector_size(4 * LANES)));
  typedef int32_t Signed __attribute__((vector_size(4 * LANES)));
  static constexpr int32_t kMost = INT32_MAX;
};
struct Wide {
  static constexpr int LANES = V::W / 2;
  typedef uint64_t Value;
  typedef uint64_t Word __attribute__((vector_size(8 * LANES)));
  typedef int64_t Signed __attribute__((vector_size(8 * LANES)));
  static constexpr int64_t kMost = INT64_MAX;
};

// The lanes of R vectors, of the codes that one of them has near; x [dim][kExactLanes].
template <class T, int R>
void fixed_scan_lanes(const FixedScan* s, const typename T::Value* x, int first_lane) {
  constexpr int CODES = 8 / R;
  typedef typename T::Value Value;
  typename T::Word factor[R], reference[R] = {};
  typename T::Signed met[R] = {}, best[R] = {}, least[R], lane_bits[R];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < T::LANES; ++i) {
      const int lane = first_lane + r * T::LANES + i;
      factor[r][i] = Value(s->factor[lane]);
      least[r][i] = T::kMost;
      lane_bits[r][i] = 1 << lane;
    }
  int64_t near[CODES];
  // Sums stay in registers only if no loop but the one over dimensions is left.
  const auto choose = [&] {
    const int64_t* e[CODES];
    typename T::Word sum[CODES][R];
#pragma GCC unroll 8
    for (int c = 0; c < CODES; ++c) {
      e[c] = s->codes + near[c] * s->dim;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[c][r] = factor[r] * Value(s->halves ? s->halves[near[c]] : 0);
    }
    for (int64_t d = 0; d < s->dim; ++d) {
      typename T::Word row[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r)
        __builtin_memcpy(&row[r], x + d * kExactLanes + first_lane + r * T::LANES, sizeof row[r]);
#pragma GCC unroll 8
      for (int c = 0; c < CODES; ++c)
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) sum[c][r] -= row[r] * Value(e[c][d]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < CODES; ++c)
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        typedef typename T::Signed Signed;
        const Signed is_near = (int(s->near[near[c]]) & lane_bits[r]) != 0;
        reference[r] = is_near & ~met[r] ? sum[c][r] : reference[r];
        met[r] |= is_near;
        const Signed score = Signed(sum[c][r] - reference[r]), better = is_near & (score < least[r]);
        least[r] = better ? score : least[r];
        best[r] = better ? Signed{} + decltype(T::kMost)(near[c]) : best[r];
      }
  };
  const unsigned lanes = ((1u << R * T::LANES) - 1u) << first_lane;
  int n = 0;
  for (int64_t i = 0; i < s->open_count || n; ++i) {
    if (i < s->open_count) {
      if (s->near[s->open[i]] & lanes) near[n++] = s->open[i];
      if (n < CODES) continue;
    }
    while (n < CODES) near[n] = near[n - 1], ++n;  // copies of the last are no better
    choose();
    n = 0;
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < T::LANES; ++i) s->index[first_lane + r * T::LANES + i] = best[r][i];
}

template <class T>
void fixed_scan_all(const FixedScan* s, const typename T::Value* x) {
  int lane = 0;
  if constexpr (2 * T::LANES <= kExactLanes)
    for (; lane + T::LANES < s->lanes; lane += 2 * T::LANES) fixed_scan_lanes<T, 2>(s, x, lane);
  if (lane < s->lanes) fixed_scan_lanes<T, 1>(s, x, lane);
}

void fixed_scan(const FixedScan* s) {
  if (s->x32) return fixed_scan_all<Narrow>(s, s->x32);
  fixed_scan_all<Wide>(s, s->x);
}

}  // namespace
}  // namespace vq_cpu
