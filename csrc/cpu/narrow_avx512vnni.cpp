// The int8 first pass with AVX-512 VNNI.
#include "cpu/simd_avx512.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_int8.h"
#include "cpu/narrow_score_avx512.h"
#include "cpu/narrow_vnni_avx512.h"

namespace vq_cpu {
namespace {

struct N : Int8<Vnni> {
  // Four unsigned bytes of each row times four signed ones of a code: exact, no saturation.
  static V::I multiply_add(V::I sum, V::I row, V::I code) { return _mm512_dpbusd_epi32(sum, row, code); }
  static Group upper(const NarrowCodes* codes, const NarrowTile* t, int tile, int row, int64_t group) {
    const int64_t steps = codes->steps, first = group * 8;
    const int32_t* e = codes->codes + first * steps;
    const int32_t* x = t->rows + row;
    __m256i sum[4] = {load(codes->start + first), {}, {}, {}};  // each waits for itself alone
    int64_t step = 0;
    for (; step + 4 <= steps; step += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        sum[i] = _mm256_dpbusd_epi32(sum[i], _mm256_set1_epi32(x[(step + i) * tile]), load(e + (step + i) * 8));
    for (; step < steps; ++step)
      sum[0] = _mm256_dpbusd_epi32(sum[0], _mm256_set1_epi32(x[step * tile]), load(e + step * 8));
    const __m256i total = _mm256_add_epi32(_mm256_add_epi32(sum[0], sum[1]), _mm256_add_epi32(sum[2], sum[3]));
    return upper_of(total, codes, t, row, first);
  }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_products.h"
#include "cpu/narrow_table.h"

namespace vq_cpu {

constexpr NarrowKernels kernels_int8_avx512vnni = narrow_table();

}  // namespace vq_cpu
