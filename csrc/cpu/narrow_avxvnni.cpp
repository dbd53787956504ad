// The int8 first pass with AVX-VNNI, for processors without AVX-512.
#include "cpu/simd_avx2.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_int8.h"
#include "cpu/narrow_lanes_avx2.h"
#include "cpu/narrow_score_lanes.h"

namespace vq_cpu {
namespace {

#ifdef __AVXVNNI__
inline __m256i dot_bytes(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
inline __m128i dot_bytes(__m128i sum, __m128i a, __m128i b) { return _mm_dpbusd_avx_epi32(sum, a, b); }
#else  // the same in the form of AVX-512, for tests (VQ_AVXVNNI_BY_AVX512)
inline __m256i dot_bytes(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_epi32(sum, a, b); }
inline __m128i dot_bytes(__m128i sum, __m128i a, __m128i b) { return _mm_dpbusd_epi32(sum, a, b); }
#endif

struct N : Int8<NarrowLanes> {
  // Four unsigned bytes of each row times four signed ones of a code: exact, no saturation.
  static V::I multiply_add(V::I sum, V::I row, V::I code) { return dot_bytes(sum, row, code); }
  static Group upper(const NarrowCodes* codes, const NarrowTile* t, int tile, int row, int64_t group) {
    const int64_t steps = codes->steps, first = group * 4;
    const int32_t *e = codes->codes + first * steps, *x = t->rows + row;
    __m128i even = load(codes->start + first), odd = _mm_setzero_si128();
    int64_t step = 0;
    for (; step + 2 <= steps; step += 2) {
      even = dot_bytes(even, _mm_set1_epi32(x[step * tile]), load(e + step * 4));
      odd = dot_bytes(odd, _mm_set1_epi32(x[(step + 1) * tile]), load(e + (step + 1) * 4));
    }
    if (step < steps) even = dot_bytes(even, _mm_set1_epi32(x[step * tile]), load(e + step * 4));
    return upper_of(_mm_add_epi32(even, odd), codes, t, row, first);
  }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_products.h"
#include "cpu/narrow_table.h"

namespace vq_cpu {

constexpr NarrowKernels kernels_int8_avxvnni = narrow_table();

}  // namespace vq_cpu
