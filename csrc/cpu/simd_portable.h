// Four lanes with the compiler's own vectors: any CPU. Same interface as simd_avx2.h and simd_avx512.h.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu/dtype.h"

namespace vq_cpu {
namespace {

struct V {
  static constexpr int W = 4;        // lanes
  static constexpr int VECTORS = 2;  // row vectors of a tile
  static constexpr int PANEL = 4;    // codes of a panel
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef I M;

  static F load(const float* p) {
    F v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, F v) { memcpy(p, &v, sizeof v); }
  static I load(const int32_t* p) {
    I v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(int32_t* p, I v) { memcpy(p, &v, sizeof v); }
  // The even and the odd ones of 2 W values of 16 bits, which were loaded as W words.
  template <class T>
  static void split(F words, F& even, F& odd, const T*) {
    T halves[2 * W];
    memcpy(halves, &words, sizeof words);
    for (int i = 0; i < W; ++i) {
      even[i] = to_float(halves[2 * i]);
      odd[i] = to_float(halves[2 * i + 1]);
    }
  }
  static F load_words(const void* p) {
    F v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static F set(float a) { return F{a, a, a, a}; }
  static F sqrt(F a) { return F{sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
  static I set(int32_t a) { return I{a, a, a, a}; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F min(F a, F b) { return a < b ? a : b; }
  static M gt(F a, F b) { return a > b; }
  static M ge(F a, F b) { return a >= b; }
  static unsigned bits(M m) {
    return unsigned(m[0] & 1) | unsigned(m[1] & 2) | unsigned(m[2] & 4) | unsigned(m[3] & 8);
  }
  static bool any(M m) { return bits(m) != 0; }
  static F select(M m, F a, F b) { return m ? a : b; }
  static I select(M m, I a, I b) { return m ? a : b; }
  static float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }

  // n of the W values at p, 0 beyond.
  template <class T>
  static F load_n(const T* p, int n) {
    F v = {};
    for (int i = 0; i < n; ++i) v[i] = to_float(p[i]);
    return v;
  }
  template <class T>
  static void store_n(T* p, F v, int n) {
    for (int i = 0; i < n; ++i) from_float(v[i], p + i);
  }
  template <class T>
  static F load(const T* p) {
    return load_n(p, W);
  }
  template <class T>
  static void store(T* p, F v) {
    store_n(p, v, W);
  }
  static void add_to(double* p, F v) {
    for (int i = 0; i < W; ++i) p[i] += double(v[i]);
  }
  // The first n lanes.
  static void add_to_n(double* p, F v, int n) {
    float lanes[W];
    store(lanes, v);
    for (int i = 0; i < n; ++i) p[i] += double(lanes[i]);
  }
  static void transpose(F* r) {
    F t[W];
    for (int i = 0; i < W; ++i) t[i] = F{r[0][i], r[1][i], r[2][i], r[3][i]};
    for (int i = 0; i < W; ++i) r[i] = t[i];
  }
};

}  // namespace
}  // namespace vq_cpu
