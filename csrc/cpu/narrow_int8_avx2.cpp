// The int8 first pass with AVX2: seven bits, so that two products of pairs fit into 16 bits, where its only product of
// bytes saturates.
#include "cpu/simd_avx2.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_int8.h"
#include "cpu/narrow_lanes_avx2.h"
#include "cpu/narrow_score_lanes.h"
#include "cpu/peak_body.h"

namespace vq_cpu {
namespace {

struct SevenBits : NarrowLanes {
  static constexpr int OFFSET = 64, LEVELS = 63;
};

// Rows of 1..127, codes of -63..63: four products of two steps are at most 4 127 63 = 32,004.
constexpr int64_t kStepsOfProduct = 2;
inline void arrange_rows(int32_t*, int64_t) {}
inline void arrange_codes(int32_t*, int64_t) {}

// sum += eight products of each row and a code, of two steps.
inline __attribute__((always_inline)) void add_products(V::I& sum, V::I row, V::I next_row, V::I code, V::I next_code) {
  const V::I pairs = _mm256_add_epi16(_mm256_maddubs_epi16(row, code), _mm256_maddubs_epi16(next_row, next_code));
  // GCC 12 would put the sum in the register of the products and move it back each time.
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}

// R <= 2 vectors of rows: their two steps, eight sums and two codes fill the registers.
template <int R>
inline __attribute__((always_inline)) void products_of(const int32_t* e, const int32_t* start, const int32_t* x,
                                                       int64_t steps, V::I (*sum)[V::PANEL]) {
  constexpr int64_t kTile = V::W * V::VECTORS;
  V::I sums[R][V::PANEL];
#pragma GCC unroll 4
  for (int c = 0; c < V::PANEL; ++c)
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) sums[r][c] = V::set(start[c]);
  for (int64_t step = 0; step < steps; step += 2, e += 2 * V::PANEL, x += 2 * kTile) {
    V::I row[R], next_row[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      row[r] = V::load(x + r * V::W);
      next_row[r] = V::load(x + kTile + r * V::W);
    }
#pragma GCC unroll 4
    for (int c = 0; c < V::PANEL; ++c) {
      const V::I code = V::set(e[c]), next_code = V::set(e[V::PANEL + c]);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) add_products(sums[r][c], row[r], next_row[r], code, next_code);
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < V::PANEL; ++c) sum[r][c] = sums[r][c];
}

// sum = start + rows . codes of one group.
template <int R>
inline __attribute__((always_inline)) void narrow_products(const int32_t* e, const int32_t* start, const int32_t* x,
                                                           int64_t steps, V::I (&sum)[R][V::PANEL]) {
  if constexpr (R > 2) {
    products_of<2>(e, start, x, steps, sum);
    products_of<R - 2>(e, start, x + 2 * V::W, steps, sum + 2);
  } else {
    products_of<R>(e, start, x, steps, sum);
  }
}

// NarrowKernels::peak.
int64_t narrow_peak(int64_t rounds) {
  return 2 * V::W * 8 * peak_of(rounds, V::set(int32_t(0)), [](V::I sum, V::I a, V::I b) {
           add_products(sum, a, b, b, a);
           return sum;
         });
}

struct N : Int8<SevenBits> {
  static Group upper(const NarrowCodes* codes, const NarrowTile* t, int tile, int row, int64_t group) {
    const int64_t steps = codes->steps, first = group * V::PANEL;
    const int32_t *e = codes->codes + first * steps, *x = t->rows + row;
    __m128i sum = load(codes->start + first);
    for (int64_t step = 0; step < steps; step += 2, e += 2 * V::PANEL, x += 2 * tile) {
      const __m128i one = _mm_maddubs_epi16(_mm_set1_epi32(x[0]), load(e));
      const __m128i other = _mm_maddubs_epi16(_mm_set1_epi32(x[tile]), load(e + V::PANEL));
      sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_add_epi16(one, other), _mm_set1_epi16(1)));
    }
    return upper_of(sum, codes, t, row, first);
  }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_table.h"

namespace vq_cpu {

constexpr NarrowKernels kernels_int8_avx2 = narrow_table();

}  // namespace vq_cpu
