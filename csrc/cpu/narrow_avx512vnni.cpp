// The int8 first pass with AVX-512 VNNI.
#include "cpu/simd_avx512.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_lanes_avx512.h"
#include "cpu/narrow_score_avx512.h"

namespace vq_cpu {
namespace {

struct N : NarrowLanes {
  static constexpr int UNIT = 4;

  // Four unsigned bytes of each row times four signed ones of a code: exact, no saturation.
  static V::I multiply_add(V::I sum, V::I row, V::I code) { return _mm512_dpbusd_epi32(sum, row, code); }
  static V::F add_product(V::I sum, const float* code_scale, V::F row_scale, V::F rest) {
    return V::fma(V::mul(_mm512_cvtepi32_ps(sum), V::set(*code_scale)), row_scale, rest);
  }

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
  struct Scales {
    V::F scale, inverse;
    explicit Scales(V::F scale) : scale(scale), inverse(V::div(V::set(1.0f), scale)) {}
  };
  struct CodeSums {
    V::F lost = V::set(0.0f), kept = V::set(0.0f);
    V::I sum = V::set(int32_t(0));
  };

  // q + 128 of four dimensions in the bytes of each lane. Raises `lost` by what they miss, squared.
  static V::I pack_row(const V::F (&value)[4], const Scales& scales, V::F& lost) {
    // In 2^23 .. 2^24 the last bit of a float is 1: its bits end in the integer.
    const V::F magic = V::set(0x1.8p23f + 128.0f);
    V::I bits[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const V::F shifted = V::fma(value[i], scales.inverse, magic);
      const V::F rest = V::fma(V::sub(magic, shifted), scales.scale, value[i]);
      lost = V::fma(rest, rest, lost);
      bits[i] = _mm512_castps_si512(shifted);
    }
    const __mmask64 second_byte = 0x2222222222222222u;
    const V::I low = _mm512_mask_blend_epi8(second_byte, bits[0], _mm512_slli_epi32(bits[1], 8));
    const V::I high = _mm512_mask_blend_epi8(second_byte, bits[2], _mm512_slli_epi32(bits[3], 8));
    return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16));
  }
  // Sixteen dimensions of a code.
  static void pack_code(V::F value, const Scales& scales, CodeSums& sums, int32_t* words) {
    const V::I integer = _mm512_cvtps_epi32(V::mul(value, scales.inverse));
    const V::F kept = V::mul(_mm512_cvtepi32_ps(integer), scales.scale);
    const V::F rest = V::sub(value, kept);
    sums.lost = V::fma(rest, rest, sums.lost);
    sums.kept = V::fma(kept, kept, sums.kept);
    sums.sum = _mm512_add_epi32(sums.sum, integer);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words), _mm512_cvtepi32_epi8(integer));
  }
  static int32_t start(const CodeSums& sums) { return -128 * _mm512_reduce_add_epi32(sums.sum); }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_table.h"

namespace vq_cpu {

constexpr NarrowKernels kernels_int8_avx512vnni = narrow_table();

}  // namespace vq_cpu
