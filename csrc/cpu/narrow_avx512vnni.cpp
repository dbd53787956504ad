// The int8 first pass with AVX-512 VNNI.
#include "cpu/simd_avx512.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_int8.h"
#include "cpu/narrow_lanes_avx512.h"
#include "cpu/narrow_score_avx512.h"

namespace vq_cpu {
namespace {

// Products are of unsigned with signed bytes.
struct Vnni : NarrowLanes {
  static constexpr int OFFSET = 128;

  static V::F convert(V::I v) { return _mm512_cvtepi32_ps(v); }
  static V::I round(V::F v) { return _mm512_cvtps_epi32(v); }
  static V::I add(V::I a, V::I b) { return _mm512_add_epi32(a, b); }
  // The last byte of the lanes of four vectors in the bytes of each lane.
  static V::I last_bytes(const V::F (&v)[4]) {
    V::I bits[4];
    for (int i = 0; i < 4; ++i) bits[i] = _mm512_castps_si512(v[i]);
    const __mmask64 second_byte = 0x2222222222222222u;
    const V::I low = _mm512_mask_blend_epi8(second_byte, bits[0], _mm512_slli_epi32(bits[1], 8));
    const V::I high = _mm512_mask_blend_epi8(second_byte, bits[2], _mm512_slli_epi32(bits[3], 8));
    return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16));
  }
  static void store_bytes(int32_t* words, V::I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words), _mm512_cvtepi32_epi8(v));
  }
};

struct N : Int8<Vnni> {
  // Four unsigned bytes of each row times four signed ones of a code: exact, no saturation.
  static V::I multiply_add(V::I sum, V::I row, V::I code) { return _mm512_dpbusd_epi32(sum, row, code); }
  static Group upper(const NarrowCodes* codes, const NarrowTile* t, int tile, int row, int64_t group) {
    const int64_t steps = codes->steps, first = group * 8;
    const int32_t* e = codes->codes + first * steps;
    const int32_t* x = t->rows + row;
    __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes->start + first));
    __m256i odd = _mm256_setzero_si256();
    int64_t step = 0;
    for (; step + 2 <= steps; step += 2) {
      even = _mm256_dpbusd_epi32(even, _mm256_set1_epi32(x[step * tile]), load(e + step * 8));
      odd = _mm256_dpbusd_epi32(odd, _mm256_set1_epi32(x[(step + 1) * tile]), load(e + (step + 1) * 8));
    }
    if (step < steps) even = _mm256_dpbusd_epi32(even, _mm256_set1_epi32(x[step * tile]), load(e + step * 8));
    const __m256 value = _mm256_cvtepi32_ps(_mm256_add_epi32(even, odd));
    return _mm256_fmadd_ps(_mm256_mul_ps(value, _mm256_loadu_ps(codes->scale + first)),
                           _mm256_set1_ps(t->scale[row]), rest(codes, t, row, first));
  }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_products.h"
#include "cpu/narrow_table.h"

namespace vq_cpu {

constexpr NarrowKernels kernels_int8_avx512vnni = narrow_table();

}  // namespace vq_cpu
