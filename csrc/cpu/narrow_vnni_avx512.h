// Int8 values with AVX-512 VNNI, whose products are of unsigned with signed bytes.
#pragma once

#include "cpu/narrow_lanes_avx512.h"

namespace vq_cpu {
namespace {

struct Vnni : NarrowLanes {
  static constexpr int OFFSET = 128, LEVELS = 127;

  static V::F convert(V::I v) { return _mm512_cvtepi32_ps(v); }
  static V::I round(V::F v) { return _mm512_cvtps_epi32(v); }
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

  // The upper bounds of a row and the codes of a group from their products.
  static Group upper_of(__m256i products, const NarrowCodes* codes, const NarrowTile* t, int row, int64_t first) {
    const float scale = t->scale[row] * codes->scale[first / V::PANEL];
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(scale), rest(codes, t, row, first));
  }
};

}  // namespace
}  // namespace vq_cpu
