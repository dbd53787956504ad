// Four lanes with the vectors that every 64-bit Arm processor has. Same interface as simd_avx2.h.
#pragma once

#include <arm_neon.h>

#include "cpu/dtype.h"

namespace vq_cpu {
namespace {

struct V {
  static constexpr int W = 4;        // lanes
  static constexpr int VECTORS = 4;  // row vectors of a tile
  static constexpr int PANEL = 4;    // codes of a panel: 4 * 4 sums for two to four pipes of latency 4
  typedef float32x4_t F;
  typedef int32x4_t I;
  typedef uint32x4_t M;

  static F load(const float* p) { return vld1q_f32(p); }
  static F load(const Bf16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
  }
  static F load(const F16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
  }
  static I load(const int32_t* p) { return vld1q_s32(p); }
  static void store(float* p, F v) { vst1q_f32(p, v); }
  static void store(int32_t* p, I v) { vst1q_s32(p, v); }
  static void store(Bf16* p, F v) {
    const uint32x4_t u = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint16x4_t rounded = vbsl_u16(vmovn_u32(vceqq_f32(v, v)), vshrn_n_u32(up, 16), vdup_n_u16(0x7fc0));
    vst1_u16(reinterpret_cast<uint16_t*>(p), rounded);
  }
  static void store(F16* p, F v) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }
  // The even and the odd ones of 2 W values of 16 bits, which were loaded as W words.
  static void split(F words, F& even, F& odd, const Bf16*) {
    const uint32x4_t bits = vreinterpretq_u32_f32(words);
    even = vreinterpretq_f32_u32(vshlq_n_u32(bits, 16));
    odd = vreinterpretq_f32_u32(vandq_u32(bits, vdupq_n_u32(0xffff0000u)));
  }
  static void split(F words, F& even, F& odd, const F16*) {
    const uint32x4_t bits = vreinterpretq_u32_f32(words);
    even = vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(bits)));
    odd = vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(bits, 16)));
  }
  static F load_words(const void* p) { return vreinterpretq_f32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
  static F set(float a) { return vdupq_n_f32(a); }
  static F sqrt(F a) { return vsqrtq_f32(a); }
  static I set(int32_t a) { return vdupq_n_s32(a); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  // As the other sets: of a NaN and a number, the second operand.
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static M gt(F a, F b) { return vcgtq_f32(a, b); }
  static M ge(F a, F b) { return vcgeq_f32(a, b); }
  static unsigned bits(M m) {
    const uint32_t of_lane[W] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, vld1q_u32(of_lane)));
  }
  static bool any(M m) { return vmaxvq_u32(m) != 0; }
  static F select(M m, F a, F b) { return vbslq_f32(m, a, b); }
  static I select(M m, I a, I b) { return vbslq_s32(m, a, b); }
  static float sum(F v) { return vaddvq_f32(v); }
  static float greatest(F v) { return vmaxvq_f32(v); }

  // n of the W values at p, 0 beyond.
  template <class T>
  static F load_n(const T* p, int n) {
    T part[W] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return load(part);
  }
  template <class T>
  static void store_n(T* p, F v, int n) {
    T part[W];
    store(part, v);
    for (int i = 0; i < n; ++i) p[i] = part[i];
  }
  static void add_to(double* p, F v) {
    vst1q_f64(p, vaddq_f64(vld1q_f64(p), vcvt_f64_f32(vget_low_f32(v))));
    vst1q_f64(p + 2, vaddq_f64(vld1q_f64(p + 2), vcvt_high_f64_f32(v)));
  }
  // The first n lanes.
  static void add_to_n(double* p, F v, int n) {
    float lanes[W];
    store(lanes, v);
    for (int i = 0; i < n; ++i) p[i] += double(lanes[i]);
  }
  static void transpose(F* r) {
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(r[0], r[1]));
    const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(r[0], r[1]));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(r[2], r[3]));
    const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(r[2], r[3]));
    r[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    r[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    r[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    r[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
  }
};

}  // namespace
}  // namespace vq_cpu
