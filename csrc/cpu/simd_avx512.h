// Sixteen lanes with AVX-512 F, BW, DQ and VL.
#pragma once

// GCC 12 takes its own undefined vectors for uninitialised ones (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "cpu/dtype.h"

#define VQ_LANES_AVX512 1  // what V is, of which the compiler may know more than one

namespace vq_cpu {
namespace {

struct V {
  static constexpr int W = 16;       // lanes
  static constexpr int VECTORS = 3;  // row vectors of a tile
  static constexpr int PANEL = 8;    // codes of a panel: 3 * 8 sums, 3 rows and a code of 32 registers
  typedef __m512 F;
  typedef __m512i I;
  typedef __mmask16 M;

  static M first(int n) { return M((1u << n) - 1u); }
  static F widen(__m256i h, const Bf16*) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
  static F widen(__m256i h, const F16*) { return _mm512_cvtph_ps(h); }
  static __m256i narrow(F v, const Bf16*) {
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i more = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
    const __m512i up = _mm512_mask_add_epi32(_mm512_set1_epi32(0x7fc00000), number, u, more);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
  }
  static __m256i narrow(F v, const F16*) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static I load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  template <class T>
  static F load(const T* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p);
  }
  template <class T>
  static void store(T* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, p));
  }
  // n of the W values at p, 0 beyond.
  static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store_n(float* p, F v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
  template <class T>
  static F load_n(const T* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p), p);
  }
  template <class T>
  static void store_n(T* p, F v, int n) {
    _mm256_mask_storeu_epi16(p, first(n), narrow(v, p));
  }
  // The even and the odd ones of 2 W values of 16 bits, which were loaded as W words.
  static void split(F words, F& even, F& odd, const Bf16*) {
    const I bits = _mm512_castps_si512(words);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(int(0xffff0000u))));
  }
  static void split(F words, F& even, F& odd, const F16*) {
    const I bits = _mm512_castps_si512(words);
    even = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits));
    odd = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
  }
  static F load_words(const void* p) { return _mm512_loadu_ps(p); }
  static F set(float a) { return _mm512_set1_ps(a); }
  static F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static I set(int32_t a) { return _mm512_set1_epi32(a); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static M gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static M ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static unsigned bits(M m) { return m; }
  static bool any(M m) { return m != 0; }
  static F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
  static I select(M m, I a, I b) { return _mm512_mask_blend_epi32(m, b, a); }
  static float sum(F v) { return _mm512_reduce_add_ps(v); }
  static float greatest(F v) { return _mm512_reduce_max_ps(v); }
  static void add_to(double* p, F v) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    _mm512_storeu_pd(p, _mm512_add_pd(_mm512_loadu_pd(p), low));
    _mm512_storeu_pd(p + 8, _mm512_add_pd(_mm512_loadu_pd(p + 8), high));
  }
  // The first n lanes.
  static void add_to_n(double* p, F v, int n) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    const __mmask8 of_low = __mmask8(first(n)), of_high = __mmask8(first(n) >> 8);
    _mm512_mask_storeu_pd(p, of_low, _mm512_add_pd(_mm512_maskz_loadu_pd(of_low, p), low));
    if (!of_high) return;
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    _mm512_mask_storeu_pd(p + 8, of_high, _mm512_add_pd(_mm512_maskz_loadu_pd(of_high, p + 8), high));
  }
  static void transpose(F* r) {
    F t[W];
    for (int i = 0; i < W; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < W; i += 4) {
      r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
      r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
      r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
  }
};

}  // namespace
}  // namespace vq_cpu
