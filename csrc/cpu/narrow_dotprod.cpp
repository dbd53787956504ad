// The int8 first pass with the dot products of Arm (Armv8.2's option dotprod).
#include "cpu/simd_neon.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_int8.h"
#include "cpu/narrow_lanes_neon.h"
#include "cpu/narrow_score_lanes.h"

namespace vq_cpu {
namespace {

struct N : Int8<NarrowLanes> {
  // Four bytes of each row times four of a code: exact.
  static V::I multiply_add(V::I sum, V::I row, V::I code) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(row), vreinterpretq_s8_s32(code));
  }
  static Group upper(const NarrowCodes* codes, const NarrowTile* t, int tile, int row, int64_t group) {
    const int64_t steps = codes->steps, first = group * 4;
    const int32_t *e = codes->codes + first * steps, *x = t->rows + row;
    V::I even = V::set(int32_t(0)), odd = even;
    int64_t step = 0;
    for (; step + 2 <= steps; step += 2) {
      even = multiply_add(even, V::set(x[step * tile]), V::load(e + step * 4));
      odd = multiply_add(odd, V::set(x[(step + 1) * tile]), V::load(e + (step + 1) * 4));
    }
    if (step < steps) even = multiply_add(even, V::set(x[step * tile]), V::load(e + step * 4));
    return upper_of(add(even, odd), codes, t, row, first);
  }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_products.h"
#include "cpu/narrow_table.h"

namespace vq_cpu {

constexpr NarrowKernels kernels_int8_dotprod = narrow_table();

}  // namespace vq_cpu
