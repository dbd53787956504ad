// The int8 first pass with the matrix products of Arm (Armv8.6's option i8mm): eight bytes of two rows times eight
// of two codes are four sums.
#include "cpu/simd_neon.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_int8.h"
#include "cpu/narrow_lanes_neon.h"
#include "cpu/narrow_score_lanes.h"
#include "cpu/peak_body.h"

namespace vq_cpu {
namespace {

// Two steps of four lanes, [step][lane], as the products take them: [lane][step].
inline void pair_lanes(int32_t* first, int32_t* second) {
  const V::I a = V::load(first), b = V::load(second);
  V::store(first, vzip1q_s32(a, b));
  V::store(second, vzip2q_s32(a, b));
}

constexpr int64_t kStepsOfProduct = 2;

inline void arrange_rows(int32_t* rows, int64_t steps) {
  constexpr int64_t kTile = V::W * V::VECTORS;
  for (int64_t step = 0; step < steps; step += 2) pair_lanes(rows + step * kTile, rows + (step + 1) * kTile);
}

inline void arrange_codes(int32_t* codes, int64_t steps) {
  for (int64_t step = 0; step < steps; step += 2) pair_lanes(codes + step * 4, codes + (step + 1) * 4);
}

// sum = start + rows . codes of one group; start is 0 for signed products.
template <int R>
inline __attribute__((always_inline)) void narrow_products(const int32_t* e, const int32_t*, const int32_t* x,
                                                           int64_t steps, V::I (&sum)[R][4]) {
  constexpr int64_t kTile = V::W * V::VECTORS;
  V::I square[R][2][2];  // of two rows and two codes, [row][code]
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int pair = 0; pair < 4; ++pair) square[r][pair / 2][pair % 2] = V::set(int32_t(0));
  for (int64_t step = 0; step < steps; step += 2, e += 8, x += 2 * kTile) {
    const int8x16_t codes[2] = {vreinterpretq_s8_s32(V::load(e)), vreinterpretq_s8_s32(V::load(e + 4))};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int rows = 0; rows < 2; ++rows) {
        const int8x16_t row = vreinterpretq_s8_s32(V::load(x + rows * kTile + r * V::W));
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
          square[r][rows][c] = vmmlaq_s32(square[r][rows][c], row, codes[c]);
          asm("" : "+w"(square[r][rows][c]));  // as keep_once of narrow_products.h
        }
      }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      sum[r][2 * c] = vuzp1q_s32(square[r][0][c], square[r][1][c]);
      sum[r][2 * c + 1] = vuzp2q_s32(square[r][0][c], square[r][1][c]);
    }
}

// NarrowKernels::peak: 2 x 2 sums of 8 products.
int64_t narrow_peak(int64_t rounds) {
  return 2 * 2 * 2 * 8 * peak_of(rounds, V::set(int32_t(0)), [](V::I sum, V::I a, V::I b) {
           return vmmlaq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
         });
}

struct N : Int8<NarrowLanes> {
  static Group upper(const NarrowCodes* codes, const NarrowTile* t, int tile, int row, int64_t group) {
    const int64_t steps = codes->steps, first = group * 4;
    const int32_t* e = codes->codes + first * steps;
    // Both steps of a row lie beside each other, those of its vector's last two rows with the second.
    const int32_t* x = t->rows + row / 4 * 4 + row % 4 / 2 * tile + row % 2 * 2;
    V::I low = V::set(int32_t(0)), high = low;  // [code][step]
    for (int64_t step = 0; step < steps; step += 2, e += 8) {
      const int32x2_t pair = vld1_s32(x + step * tile);
      const int8x16_t both = vreinterpretq_s8_s32(vcombine_s32(pair, pair));
      low = vdotq_s32(low, both, vreinterpretq_s8_s32(V::load(e)));
      high = vdotq_s32(high, both, vreinterpretq_s8_s32(V::load(e + 4)));
    }
    return upper_of(vpaddq_s32(low, high), codes, t, row, first);
  }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_table.h"

namespace vq_cpu {

constexpr NarrowKernels kernels_int8_i8mm = narrow_table();

}  // namespace vq_cpu
