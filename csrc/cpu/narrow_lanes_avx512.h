// What the narrow passes share with AVX-512: the eight upper bounds of a group, and lists of lanes.
#pragma once

#include "cpu/narrow.h"

namespace vq_cpu {
namespace {

struct NarrowLanes {
  static_assert(V::PANEL == 8, "a group is one vector of eight");
  typedef __m256 Group;  // a value of each code of a group

  static __m256i load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  // What is added to the products of a row with the codes from `first` on.
  static Group rest(const NarrowCodes* codes, const NarrowTile* t, int row, int64_t first) {
    const __m256 sum = _mm256_fmadd_ps(_mm256_set1_ps(t->lost[row]), _mm256_loadu_ps(codes->of_lost + first),
                                       _mm256_loadu_ps(codes->minus_half + first));
    return _mm256_fmadd_ps(_mm256_set1_ps(t->norm[row]), _mm256_loadu_ps(codes->of_norm + first), sum);
  }
  static Group load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Group values) { _mm256_storeu_ps(to, values); }
  // Writes the values of at least `least` and their codes, and garbage up to eight; returns how many there are.
  static int append(Group values, float least, int32_t first_code, int32_t* codes, float* upper) {
    const __mmask8 open = _mm256_cmp_ps_mask(values, _mm256_set1_ps(least), _CMP_GE_OQ);
    const __m256i code =
        _mm256_add_epi32(_mm256_set1_epi32(first_code), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_maskz_compress_epi32(open, code));
    _mm256_storeu_ps(upper, _mm256_maskz_compress_ps(open, values));
    return __builtin_popcount(open);
  }
  // A value whose bits in `mask` are those of `tag`, and these bits.
  static V::F tagged(V::F value, V::I tag, int32_t mask) {
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(V::set(mask), tag, _mm512_castps_si512(value), 0xca));
  }
  static V::I tag_of(V::F value, int32_t mask) { return _mm512_and_si512(_mm512_castps_si512(value), V::set(mask)); }
  static V::I add(V::I a, V::I b) { return _mm512_add_epi32(a, b); }
  // Writes 16 group + lane for every lane in `hit`, and garbage up to sixteen; returns how many there are.
  static int lanes_of(unsigned hit, V::I group, int32_t* out) {
    const V::I lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    V::store(out, _mm512_maskz_compress_epi32(__mmask16(hit), _mm512_add_epi32(_mm512_slli_epi32(group, 4), lanes)));
    return __builtin_popcount(hit);
  }
  static V::F gather(const float* values, V::I index) { return _mm512_i32gather_ps(index, values, 4); }
  // The largest value everywhere, the first code that has it, one of equal values, and the values but a code's.
  static Group most(Group values) {
    Group top = _mm256_max_ps(values, _mm256_permute2f128_ps(values, values, 1));
    top = _mm256_max_ps(top, _mm256_permute_ps(top, 0x4e));
    return _mm256_max_ps(top, _mm256_permute_ps(top, 0xb1));
  }
  static int first_of(Group values, Group most) {
    return __builtin_ctz(_mm256_cmp_ps_mask(values, most, _CMP_EQ_OQ) | 0x80u);
  }
  static float get(Group most) { return _mm256_cvtss_f32(most); }
  static Group without(Group values, int code) {
    return _mm256_mask_mov_ps(values, __mmask8(1u << code), _mm256_set1_ps(-INFINITY));
  }
};

}  // namespace
}  // namespace vq_cpu
