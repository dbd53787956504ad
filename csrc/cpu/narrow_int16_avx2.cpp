// The int16 first pass with AVX2, for processors without int8 products of four.
#include "cpu/simd_avx2.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_int16.h"
#include "cpu/narrow_lanes_avx2.h"
#include "cpu/narrow_score_lanes.h"

namespace vq_cpu {
namespace {

struct N : Int16<NarrowLanes> {
  // Two products of each row and a code: exact, no saturation.
  static V::I multiply_add(V::I sum, V::I row, V::I code) {
    // GCC 12 would put the sum in the register of the products and move it back each time.
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(row, code)));
    return sum;
  }
  static Group upper(const NarrowCodes* codes, const NarrowTile* t, int tile, int row, int64_t group) {
    const int64_t steps = codes->steps, first = group * 4;
    const int32_t *e = codes->codes + first * steps, *x = t->rows + row;
    __m128i even = _mm_setzero_si128(), odd = even;
    int64_t step = 0;
    for (; step + 2 <= steps; step += 2) {
      even = _mm_add_epi32(even, _mm_madd_epi16(_mm_set1_epi32(x[step * tile]), load(e + step * 4)));
      odd = _mm_add_epi32(odd, _mm_madd_epi16(_mm_set1_epi32(x[(step + 1) * tile]), load(e + (step + 1) * 4)));
    }
    if (step < steps) even = _mm_add_epi32(even, _mm_madd_epi16(_mm_set1_epi32(x[step * tile]), load(e + step * 4)));
    return upper_of(_mm_add_epi32(even, odd), codes, t, row, first);
  }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_products.h"
#include "cpu/narrow_table.h"

namespace vq_cpu {

constexpr NarrowKernels kernels_int16_avx2 = narrow_table();

}  // namespace vq_cpu
