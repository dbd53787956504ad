// What an int8 or int16 pass needs with AVX2: the upper bounds of a group of four codes, lists of lanes, and integers.
#pragma once

#include "cpu/narrow.h"

namespace vq_cpu {
namespace {

// As bytes: BMI2, which could compress them, takes hundreds of cycles for it on some processors that have it.
struct LanesIn {
  uint8_t numbers[256][8] = {};

  constexpr LanesIn() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, n = 0; lane < 8; ++lane)
        if (mask >> lane & 1) numbers[mask][n++] = uint8_t(lane);
  }
};
constexpr LanesIn kLanesIn;

struct NarrowLanes {
  static_assert(V::PANEL == 4 && V::W == 8, "a group is half a vector of four, rows are one of eight");
  typedef __m128 Group;               // a value of each code of a group
  static constexpr int OFFSET = 128, LEVELS = 127;  // products are of unsigned with signed bytes

  static V::F convert(V::I v) { return _mm256_cvtepi32_ps(v); }
  static V::I round(V::F v) { return _mm256_cvtps_epi32(v); }
  static V::I add(V::I a, V::I b) { return _mm256_add_epi32(a, b); }
  // The last byte of the lanes of four vectors in the bytes of each lane.
  static V::I last_bytes(const V::F (&v)[4]) {
    V::I bits[4];
    for (int i = 0; i < 4; ++i) bits[i] = _mm256_castps_si256(v[i]);
    const V::I second_byte = _mm256_set1_epi16(short(0xff00));
    const V::I low = _mm256_blendv_epi8(bits[0], _mm256_slli_epi32(bits[1], 8), second_byte);
    const V::I high = _mm256_blendv_epi8(bits[2], _mm256_slli_epi32(bits[3], 8), second_byte);
    return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
  }
  static void store_bytes(int32_t* words, V::I v) {
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(words), _mm_packs_epi16(halves, halves));
  }
  // The same of the last halves of two.
  static V::I last_halves(const V::F (&v)[2]) {
    return _mm256_blend_epi16(_mm256_castps_si256(v[0]), _mm256_slli_epi32(_mm256_castps_si256(v[1]), 16), 0xaa);
  }
  static void store_halves(int32_t* words, V::I v) {
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words), halves);
  }

  static __m128i load(const int32_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  // The upper bounds of a row and the codes of a group from their products.
  static Group upper_of(__m128i products, const NarrowCodes* codes, const NarrowTile* t, int row, int64_t first) {
    const __m128 sum = _mm_fmadd_ps(_mm_set1_ps(t->lost[row]), _mm_loadu_ps(codes->of_lost + first),
                                    _mm_loadu_ps(codes->minus_half + first));
    const __m128 rest = _mm_fmadd_ps(_mm_set1_ps(t->norm[row]), _mm_loadu_ps(codes->of_norm + first), sum);
    const float scale = t->scale[row] * codes->scale[first / V::PANEL];
    return _mm_fmadd_ps(_mm_cvtepi32_ps(products), _mm_set1_ps(scale), rest);
  }
  // The numbers of the bits of `mask`, of eight, in ascending order, then zeros.
  static __m256i lanes_in(unsigned mask) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kLanesIn.numbers[mask])));
  }
  static Group load(const float* from) { return _mm_loadu_ps(from); }
  static void store(float* to, Group values) { _mm_storeu_ps(to, values); }
  // Writes the values of at least `least` and their codes, and garbage up to four; returns how many there are.
  static int append(Group values, float least, int32_t first_code, int32_t* codes, float* upper) {
    const unsigned open = unsigned(_mm_movemask_ps(_mm_cmp_ps(values, _mm_set1_ps(least), _CMP_GE_OQ)));
    const __m128i lanes = _mm256_castsi256_si128(lanes_in(open));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm_add_epi32(lanes, _mm_set1_epi32(first_code)));
    _mm_storeu_ps(upper, _mm_permutevar_ps(values, lanes));
    return __builtin_popcount(open);
  }
  // A value whose bits in `mask` are those of `tag`, and these bits.
  static V::F tagged(V::F value, V::I tag, int32_t mask) {
    return _mm256_or_ps(_mm256_andnot_ps(_mm256_castsi256_ps(V::set(mask)), value), _mm256_castsi256_ps(tag));
  }
  static V::I tag_of(V::F value, int32_t mask) { return _mm256_and_si256(_mm256_castps_si256(value), V::set(mask)); }
  // Writes 8 group + lane for every lane in `hit`, and garbage up to eight; returns how many there are.
  static int lanes_of(unsigned hit, V::I group, int32_t* out) {
    const __m256i lanes = lanes_in(hit);
    V::store(out, _mm256_add_epi32(_mm256_slli_epi32(_mm256_permutevar8x32_epi32(group, lanes), 3), lanes));
    return __builtin_popcount(hit);
  }
  static V::F gather(const float* values, V::I index) { return _mm256_i32gather_ps(values, index, 4); }
  // The largest value everywhere, the first code that has it, one of equal values, and the values but a code's.
  static Group most(Group values) {
    const Group top = _mm_max_ps(values, _mm_permute_ps(values, 0x4e));
    return _mm_max_ps(top, _mm_permute_ps(top, 0xb1));
  }
  static int first_of(Group values, Group most) {
    return __builtin_ctz(unsigned(_mm_movemask_ps(_mm_cmp_ps(values, most, _CMP_EQ_OQ))) | 0x8u);
  }
  static float get(Group most) { return _mm_cvtss_f32(most); }
  static Group without(Group values, int code) {
    const __m128i other = _mm_cmpeq_epi32(_mm_setr_epi32(0, 1, 2, 3), _mm_set1_epi32(code));
    return _mm_blendv_ps(values, _mm_set1_ps(-INFINITY), _mm_castsi128_ps(other));
  }
};

}  // namespace
}  // namespace vq_cpu
