// The sweep of a narrow first pass and its search for candidates, over V (one of simd_*.h) and N, which
// multiplies narrow values; both included before.
//
// Lanes are rows. The sweep leaves the largest upper bound of each group of codes; groups that reach the lower
// bound of a row's best are looked into again, code by code.
#pragma once

#include <float.h>
#include <math.h>

#include "cpu/narrow.h"

namespace vq_cpu {
namespace {

constexpr int NARROW_TILE = V::W * V::VECTORS;
constexpr int GROUP = V::PANEL;

// How far the bounds reach on both sides of a score: the upper one less this is a lower one.
inline float twice_bound(const NarrowCodes* codes, const NarrowFactors* factors, const NarrowTile* t, int row,
                         int64_t code) {
  const double half = -double(codes->minus_half[code]);
  return float(1.0001 * (2.0 * double(t->norm[row]) * double(t->bound[code]) +
                         2.0 * (double(factors->half) * half + double(factors->offset))));
}

// Groups first .. first + count - 1 against R vectors of rows.
template <int R>
void narrow_sweep(const NarrowCodes* codes, const NarrowTile* t, int64_t first, int64_t count) {
  const int32_t* e = codes->codes + first * codes->steps * GROUP;
  for (int64_t g = 0; g < count; ++g) {
    const int64_t code = (first + g) * GROUP;
    const int32_t* x = t->rows;
    typename V::I sum[R][GROUP];
#pragma GCC unroll 8
    for (int c = 0; c < GROUP; ++c)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][c] = V::set(codes->start[code + c]);
    for (int64_t step = 0; step < codes->steps; ++step, e += GROUP, x += NARROW_TILE) {
      typename V::I row[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) row[r] = V::load(x + r * V::W);
#pragma GCC unroll 8
      for (int c = 0; c < GROUP; ++c) {
        const typename V::I value = V::set(e[c]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          sum[r][c] = N::multiply_add(sum[r][c], row[r], value);
          // GCC 11 and 12 would keep every sum twice, once for the next round and once for the code behind the
          // loop, and move half of them through memory: half the speed. For this both are one.
          asm("" : "+v"(sum[r][c]));
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V::F norm = V::load(t->norm + r * V::W), scale = V::load(t->scale + r * V::W);
      V::F most;
#pragma GCC unroll 8
      for (int c = 0; c < GROUP; ++c) {
        const V::F rest =
            V::fma(norm, V::set(t->bound[code + c]), V::set(codes->minus_half[code + c]));
        const V::F upper = N::add_product(sum[r][c], codes->scale + code + c, scale, rest);
        most = c == 0 ? upper : V::max(most, upper);
      }
      V::store(t->most + g * NARROW_TILE + r * V::W, most);
    }
  }
}

// Leaves out what the row's least score has ruled out since it was listed.
inline void narrow_drop(NarrowTile* t, int row) {
  int32_t* candidates = t->candidates + row * kNarrowCandidates;
  float* upper = t->upper + row * kNarrowCandidates;
  int n = 0;
  for (int i = 0; i < t->counts[row]; ++i) {
    if (!(upper[i] >= t->least[row])) continue;
    candidates[n] = candidates[i];
    upper[n++] = upper[i];
  }
  t->counts[row] = n;
}

// Lists the open ones among a group's upper bounds.
inline void narrow_list(NarrowTile* t, int row, int64_t group, const typename N::Group& values) {
  for (unsigned open = N::at_least(values, t->least[row]); open; open &= open - 1) {
    if (t->counts[row] == kNarrowCandidates) narrow_drop(t, row);
    int32_t& n = t->counts[row];
    if (n >= kNarrowCandidates) {
      n = kNarrowCandidates + 1;
      t->least[row] = INFINITY;
      return;
    }
    const int c = __builtin_ctz(open);
    t->candidates[row * kNarrowCandidates + n] = int32_t(group * GROUP) + c;
    t->upper[row * kNarrowCandidates + n] = N::get(values, c);
    ++n;
  }
}

// Raises a row's least score by the likely best code of the group of the largest upper bound.
inline void narrow_lead(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t, int row,
                        int64_t group) {
  const typename N::Group values = N::upper(codes, t, NARROW_TILE, row, group);
  const int c = N::largest(values);
  const float reach = twice_bound(codes, factors, t, row, group * GROUP + c) + t->slack[row];
  const float least = N::get(values, c) - reach;
  // Rounded down, and not raised where the bound is infinite.
  const float down = least - fabsf(least) * 0x1p-22f;
  if (down > t->least[row]) t->least[row] = down;
  narrow_list(t, row, group, values);
}

// What a chunk of `count` groups, of which t->most is known, leaves open for one vector of rows.
inline void narrow_reduce(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t, int vector,
                          int64_t first, int64_t count) {
  const int base = vector * V::W;
  const int lanes = t->n - base < V::W ? t->n - base : V::W;
  const unsigned in_use = lanes == V::W ? (V::W == 32 ? ~0u : (1u << V::W) - 1u) : (1u << lanes) - 1u;
  const float* most = t->most + base;
  V::F best = V::load(most);
  V::I lead = V::set(int32_t(0));
  for (int64_t g = 1; g < count; ++g) {
    const V::F value = V::load(most + g * NARROW_TILE);
    lead = V::select(V::gt(value, best), V::set(int32_t(g)), lead);
    best = V::max(best, value);
  }
  const unsigned open = V::bits(V::ge(best, V::load(t->least + base))) & in_use;
  if (!open) return;
  int32_t leads[V::W];
  V::store(leads, lead);
  for (unsigned left = open; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    narrow_lead(codes, factors, t, base + lane, first + leads[lane]);
  }
  V::F least = V::load(t->least + base);
  for (int64_t g = 0; g < count; ++g) {
    unsigned hits = V::bits(V::ge(V::load(most + g * NARROW_TILE), least)) & open;
    if (__builtin_expect(!hits, 1)) continue;
    for (; hits; hits &= hits - 1) {
      const int lane = __builtin_ctz(hits);
      if (leads[lane] == int32_t(g)) continue;
      narrow_list(t, base + lane, first + g, N::upper(codes, t, NARROW_TILE, base + lane, first + g));
      least = V::load(t->least + base);
    }
  }
}

void narrow_search(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t) {
  const int vectors = (t->n + V::W - 1) / V::W;
  for (int row = 0; row < NARROW_TILE; ++row) {
    t->least[row] = t->norm[row] < INFINITY ? -FLT_MAX : NAN;  // NaN: nothing reaches it
    t->counts[row] = 0;
  }
  constexpr int64_t kGroups = kNarrowChunk / GROUP;
  for (int64_t first = 0; first < codes->groups; first += kGroups) {
    const int64_t count = codes->groups - first < kGroups ? codes->groups - first : kGroups;
    switch (vectors) {
      case 1:
        narrow_sweep<1>(codes, t, first, count);
        break;
      case 2:
        narrow_sweep<2>(codes, t, first, count);
        break;
      default:
        narrow_sweep<V::VECTORS>(codes, t, first, count);
    }
    for (int v = 0; v < vectors; ++v) narrow_reduce(codes, factors, t, v, first, count);
  }
  for (int row = 0; row < t->n; ++row)
    if (t->counts[row] <= kNarrowCandidates) narrow_drop(t, row);
}

void narrow_set_bounds(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t) {
  // The largest of the tile's rows; those without a bound find nothing in any case.
  float ratio = 0.0f;
  for (int row = 0; row < t->n; ++row) {
    const float own = t->lost[row] / t->norm[row];
    if (own > ratio) ratio = own;
  }
  const V::F of_lost = V::set(factors->lost), of_kept = V::set(factors->lost * ratio + factors->kept);
  const int64_t padded = codes->groups * GROUP;
  int64_t j = 0;
  for (; j + V::W <= padded; j += V::W)
    V::store(t->bound + j, V::fma(V::load(codes->kept + j), of_kept, V::mul(V::load(codes->lost + j), of_lost)));
  for (; j < padded; ++j)
    t->bound[j] = codes->kept[j] * (factors->lost * ratio + factors->kept) + codes->lost[j] * factors->lost;
}

}  // namespace
}  // namespace vq_cpu
