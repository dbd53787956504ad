// What the int8 passes share on 64-bit Arm processors: the upper bounds of a group of four codes, lists of lanes,
// and integers. Products are of signed bytes, so that nothing is added to rows.
#pragma once

#include "cpu/narrow.h"

namespace vq_cpu {
namespace {

struct NarrowLanes {
  static_assert(V::PANEL == 4 && V::W == 4, "a group is one vector of four, and so are rows");
  typedef V::F Group;  // a value of each code of a group
  static constexpr int OFFSET = 0, LEVELS = 127;

  static V::F convert(V::I v) { return vcvtq_f32_s32(v); }
  static V::I round(V::F v) { return vcvtnq_s32_f32(v); }
  static V::I add(V::I a, V::I b) { return vaddq_s32(a, b); }
  // The last byte of the lanes of four vectors in the bytes of each lane.
  static V::I last_bytes(const V::F (&v)[4]) {
    uint32x4_t bytes = vreinterpretq_u32_f32(v[0]);
    bytes = vsliq_n_u32(bytes, vreinterpretq_u32_f32(v[1]), 8);
    bytes = vsliq_n_u32(bytes, vreinterpretq_u32_f32(v[2]), 16);
    return vreinterpretq_s32_u32(vsliq_n_u32(bytes, vreinterpretq_u32_f32(v[3]), 24));
  }
  static void store_bytes(int32_t* words, V::I v) {
    const int16x4_t halves = vmovn_s32(v);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(halves, halves));
    words[0] = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
  }

  // The upper bounds of a row and the codes of a group from their products.
  static Group upper_of(V::I products, const NarrowCodes* codes, const NarrowTile* t, int row, int64_t first) {
    const V::F sum =
        V::fma(V::set(t->lost[row]), V::load(codes->of_lost + first), V::load(codes->minus_half + first));
    const V::F rest = V::fma(V::set(t->norm[row]), V::load(codes->of_norm + first), sum);
    return V::fma(convert(products), V::set(t->scale[row] * codes->scale[first / V::PANEL]), rest);
  }
  // The lanes in `mask` to the front.
  static int32x4_t compress(unsigned mask, int32x4_t v) {
    // Of each mask, its lanes in ascending order, two bits each from the lowest.
    static constexpr uint8_t kOrder[16] = {0x00, 0x00, 0x01, 0x04, 0x02, 0x08, 0x09, 0x24,
                                           0x03, 0x0c, 0x0d, 0x34, 0x0e, 0x38, 0x39, 0xe4};
    const uint32x4_t order = vdupq_n_u32(kOrder[mask]);
    const int32_t shifts[4] = {0, -2, -4, -6};
    const uint32x4_t lane = vandq_u32(vshlq_u32(order, vld1q_s32(shifts)), vdupq_n_u32(3));
    // Bytes 4 lane .. 4 lane + 3.
    const uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100u), lane, 0x04040404u);
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(v), vreinterpretq_u8_u32(bytes)));
  }
  static V::I counted_from(int32_t first) {
    const int32_t lanes[4] = {0, 1, 2, 3};
    return vaddq_s32(vld1q_s32(lanes), vdupq_n_s32(first));
  }
  static Group load(const float* from) { return V::load(from); }
  static void store(float* to, Group values) { V::store(to, values); }
  // Writes the values of at least `least` and their codes, and garbage up to four; returns how many there are.
  static int append(Group values, float least, int32_t first_code, int32_t* codes, float* upper) {
    const unsigned open = V::bits(V::ge(values, V::set(least)));
    V::store(codes, compress(open, counted_from(first_code)));
    V::store(upper, vreinterpretq_f32_s32(compress(open, vreinterpretq_s32_f32(values))));
    return __builtin_popcount(open);
  }
  // A value whose bits in `mask` are those of `tag`, and these bits.
  static V::F tagged(V::F value, V::I tag, int32_t mask) {
    return vbslq_f32(vdupq_n_u32(uint32_t(mask)), vreinterpretq_f32_s32(tag), value);
  }
  static V::I tag_of(V::F value, int32_t mask) { return vandq_s32(vreinterpretq_s32_f32(value), vdupq_n_s32(mask)); }
  // Writes 4 group + lane for every lane in `hit`, and garbage up to four; returns how many there are.
  static int lanes_of(unsigned hit, V::I group, int32_t* out) {
    V::store(out, compress(hit, vaddq_s32(vshlq_n_s32(group, 2), counted_from(0))));
    return __builtin_popcount(hit);
  }
  static V::F gather(const float* values, V::I index) {
    int32_t at[4];
    V::store(at, index);
    const float lanes[4] = {values[at[0]], values[at[1]], values[at[2]], values[at[3]]};
    return V::load(lanes);
  }
  // The largest value everywhere, the first code that has it, one of equal values, and the values but a code's.
  static Group most(Group values) { return vdupq_n_f32(vmaxvq_f32(values)); }
  static int first_of(Group values, Group most) { return __builtin_ctz(V::bits(vceqq_f32(values, most)) | 0x8u); }
  static float get(Group most) { return vgetq_lane_f32(most, 0); }
  static Group without(Group values, int code) {
    return vbslq_f32(vceqq_s32(counted_from(0), vdupq_n_s32(code)), vdupq_n_f32(-INFINITY), values);
  }
};

}  // namespace
}  // namespace vq_cpu
