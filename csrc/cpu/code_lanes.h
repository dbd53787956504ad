// Codes in float64 over the compiler's own vectors, of the size of V's (one of simd_*.h, included before).
#pragma once

#include <stdint.h>
#include <string.h>

#include <utility>

namespace vq_cpu {
namespace {

constexpr int CODE_LANES = V::W / 2;

typedef float CodeF __attribute__((vector_size(4 * CODE_LANES)));
typedef double CodeD __attribute__((vector_size(8 * CODE_LANES)));
typedef uint32_t WordsU __attribute__((vector_size(4 * V::W)));

// v = the n <= CODE_LANES values at p, 0 beyond.
template <class T>
inline __attribute__((always_inline)) void code_load(T& v, const float* p, int64_t n) {
  if (n == CODE_LANES) {
    memcpy(&v, p, sizeof v);
    return;
  }
#ifdef VQ_LANES_AVX512
  const __m256 some = _mm256_maskz_loadu_ps(__mmask8((1u << n) - 1u), p);
  memcpy(&v, &some, sizeof v);
#else
  float part[CODE_LANES] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  memcpy(&v, part, sizeof v);
#endif
}

// GCC 12 converts a vector in two halves.
inline __attribute__((always_inline)) CodeD code_widen(CodeF f) {
#if defined(VQ_LANES_AVX512)
  return CodeD(_mm512_cvtps_pd(__m256(f)));
#elif defined(VQ_LANES_AVX2)
  return CodeD(_mm256_cvtps_pd(__m128(f)));
#else
  return __builtin_convertvector(f, CodeD);
#endif
}

inline __attribute__((always_inline)) void code_load(CodeD& v, const float* p, int64_t n) {
  CodeF f;
  code_load(f, p, n);
  v = code_widen(f);
}

// a b + c, in one rounding where there is an instruction for it.
inline __attribute__((always_inline)) CodeD code_fma(CodeD a, CodeD b, CodeD c) {
#if defined(VQ_LANES_AVX512)
  return CodeD(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
#elif defined(VQ_LANES_AVX2)
  return CodeD(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
#else
  return a * b + c;
#endif
}

inline double code_sum(const CodeD& v) {
  double sum = 0.0;
  for (int i = 0; i < CODE_LANES; ++i) sum += v[i];
  return sum;
}

// The same in halves, which wait less for each other.
inline __attribute__((always_inline)) double code_sum_halves(const CodeD& v) {
#ifdef VQ_LANES_AVX512
  return _mm512_reduce_add_pd(__m512d(v));
#else
  double half[CODE_LANES];
  memcpy(half, &v, sizeof v);
  for (int n = CODE_LANES / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) half[i] += half[i + n];
  return half[0];
#endif
}

// The lanes INDEX of a and, counted on from CODE_LANES, of b.
template <int64_t... INDEX>
inline __attribute__((always_inline)) CodeD code_pick(const CodeD& a, const CodeD& b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, INDEX...);
#else  // GCC has that from version 12 on
  typedef int64_t Index __attribute__((vector_size(8 * CODE_LANES)));
  return __builtin_shuffle(a, b, Index{INDEX...});
#endif
}

// Lanes [0, H) and [H, 2 H) of a added up, and those of b behind them; the same of every further 2 H lanes.
template <int H, int64_t... LANE>
inline __attribute__((always_inline)) CodeD code_fold(const CodeD& a, const CodeD& b,
                                                      std::integer_sequence<int64_t, LANE...>) {
  return code_pick<(LANE % (2 * H) < H ? LANE : LANE - H + CODE_LANES)...>(a, b) +
         code_pick<(LANE % (2 * H) < H ? LANE + H : LANE + CODE_LANES)...>(a, b);
}

// The sums of as many vectors as one has lanes: of v[i] in lane i. v is overwritten.
template <int H = CODE_LANES / 2>
inline __attribute__((always_inline)) CodeD code_sums(CodeD (&v)[CODE_LANES]) {
  if constexpr (H == 0) {
    return v[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < H; ++i) v[i] = code_fold<H>(v[i], v[i + H], std::make_integer_sequence<int64_t, CODE_LANES>());
    return code_sums<H / 2>(v);
  }
}

// step(d, n) for every CODE_LANES dimensions, n < CODE_LANES in the last ones only.
template <class Step>
inline __attribute__((always_inline)) void over_code(int64_t dim, Step step) {
  int64_t d = 0;
  for (; d + CODE_LANES <= dim; d += CODE_LANES) step(d, int64_t(CODE_LANES));
  if (d < dim) step(d, dim - d);
}

}  // namespace
}  // namespace vq_cpu
