// The sweep of a narrow first pass and its search for candidates, over V (one of simd_*.h), N, which packs and scores
// narrow values, and narrow_products, which multiplies them; all included before.
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

// Groups first .. first + count - 1 against R vectors of rows; most [count][tile].
template <int R>
void narrow_sweep(const NarrowCodes* codes, const NarrowTile* t, int64_t first, int64_t count, float* most_of_group) {
  for (int64_t g = 0; g < count; ++g) {
    const int64_t code = (first + g) * GROUP;
    typename V::I sum[R][GROUP];
    narrow_products<R>(codes->codes + code * codes->steps, codes->start + code, t->rows, codes->steps, sum);
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
      V::store(most_of_group + g * NARROW_TILE + r * V::W, most);
    }
  }
}

// As many vectors of rows as are in use.
template <int R>
void narrow_sweep_vectors(const NarrowCodes* codes, const NarrowTile* t, int vectors, int64_t first, int64_t count,
                          float* most_of_group) {
  if constexpr (R > 1) {
    if (vectors < R) return narrow_sweep_vectors<R - 1>(codes, t, vectors, first, count, most_of_group);
  }
  narrow_sweep<R>(codes, t, first, count, most_of_group);
}

// A few lines at a time: the processor leaves out what is more than it can wait for.
inline void narrow_fetch(const NextRows& rows, int first, int n) {
  constexpr int64_t kLine = 64;
  for (int i = first; i < first + n && i < rows.count; ++i)
    for (int64_t byte = 0; byte < rows.bytes; byte += kLine)
      __builtin_prefetch(rows.data + i * rows.pitch + byte, 0, 3);
}

// Leaves out what the row's least score has ruled out since it was listed.
inline void narrow_drop(NarrowTile* t, int row) {
  int32_t* candidates = t->candidates + row * kNarrowPitch;
  float* upper = t->upper + row * kNarrowPitch;
  int n = 0;
  for (int i = 0; i < t->counts[row]; ++i) {
    if (!(upper[i] >= t->least[row])) continue;
    candidates[n] = candidates[i];
    upper[n++] = upper[i];
  }
  t->counts[row] = n;
}

// Lists the open codes of a group.
inline void narrow_list(const NarrowCodes* codes, NarrowTile* t, int row, int64_t group) {
  int32_t& n = t->counts[row];
  if (n > kNarrowCandidates) return;  // given up
  const typename N::Group values = N::upper(codes, t, NARROW_TILE, row, group);
  const int at = row * kNarrowPitch + n;
  n += N::append(values, t->least[row], int32_t(group * GROUP), t->candidates + at, t->upper + at);
  if (__builtin_expect(n <= kNarrowCandidates, 1)) return;
  narrow_drop(t, row);
  if (n <= kNarrowCandidates) return;
  n = kNarrowCandidates + 1;
  t->least[row] = INFINITY;
}

// A lower bound of the best score of a group, by its likely best code alone.
inline float narrow_lead(const NarrowCodes* codes, const NarrowFactors* factors, const NarrowTile* t, int row,
                         int64_t group) {
  const typename N::Group values = N::upper(codes, t, NARROW_TILE, row, group);
  const int c = N::largest(values);
  const int64_t code = group * GROUP + c;
  return N::get(values, c) - twice_bound(*factors, t->norm[row], t->bound[code], -codes->minus_half[code]);
}

// Raises the least scores of one vector of rows by the groups of their largest upper bounds.
inline void narrow_raise(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t, int base,
                         V::F best, V::I lead, int64_t first, unsigned open) {
  int32_t leads[V::W];
  float least[V::W];
  V::store(leads, lead);
  const V::F half = V::fma(V::set(factors->half), N::gather(codes->most_half + first, lead), V::set(factors->offset));
  const V::F bound = N::gather(t->group_bound + first, lead);
  const V::F reach = V::fma(V::load(t->norm + base), bound, half);
  V::store(least, V::fma(reach, V::set(-2.001f), best));
  // Groups whose codes differ in size: one long code's bound is not that of the others.
  for (unsigned left = open & ~V::bits(V::gt(V::set(INFINITY), bound)); left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    least[lane] = narrow_lead(codes, factors, t, base + lane, first + leads[lane]);
  }
  const V::F low = V::sub(V::load(least), V::load(t->slack + base));
  // Rounded down.
  const V::F down = V::fma(V::max(low, V::sub(V::set(0.0f), low)), V::set(-0x1p-22f), low);
  const V::F before = V::load(t->least + base);
  V::store(t->least + base, V::select(V::gt(down, before), down, before));
}

// What a chunk of `count` groups, of which t->most is known, leaves open for one vector of rows.
inline void narrow_reduce(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t, int base,
                          int64_t first, int64_t count) {
  const int lanes = t->n - base < V::W ? t->n - base : V::W;
  const unsigned in_use = (1u << lanes) - 1u;
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
  narrow_raise(codes, factors, t, base, best, lead, first, open);
  const V::F least = V::load(t->least + base);
  // In the first chunk every other group is open for some row: a jump there would be guessed wrongly.
  const bool rarely = first > 0;
  int32_t hits[kNarrowChunk / GROUP * V::W + V::W];  // group * W + lane
  int n = 0;
  for (int64_t g = 0; g < count; ++g) {
    const unsigned hit = V::bits(V::ge(V::load(most + g * NARROW_TILE), least)) & open;
    if (rarely && !hit) continue;
    n += N::lanes_of(hit, int32_t(g) * V::W, hits + n);
  }
  for (int h = 0; h < n; ++h) narrow_list(codes, t, base + hits[h] % V::W, first + hits[h] / V::W);
}

void narrow_search(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t) {
  const int vectors = (t->n + V::W - 1) / V::W;
  for (int row = 0; row < NARROW_TILE; ++row) {
    t->least[row] = t->norm[row] < INFINITY ? -FLT_MAX : NAN;  // NaN: nothing reaches it
    t->counts[row] = 0;
  }
  constexpr int64_t kGroups = kNarrowChunk / GROUP, kFetchGroups = 4;
  constexpr int kFetchRows = 3;  // for every so many groups
  int fetched = 0;
  for (int64_t first = 0; first < codes->groups; first += kGroups) {
    const int64_t count = codes->groups - first < kGroups ? codes->groups - first : kGroups;
    for (int64_t g = 0; g < count; g += kFetchGroups) {
      narrow_fetch(t->next, fetched, kFetchRows);
      fetched += kFetchRows;
      const int64_t some = count - g < kFetchGroups ? count - g : kFetchGroups;
      narrow_sweep_vectors<V::VECTORS>(codes, t, vectors, first + g, some, t->most + g * NARROW_TILE);
    }
    for (int v = 0; v < vectors; ++v) narrow_reduce(codes, factors, t, v * V::W, first, count);
  }
  if (codes->groups <= kGroups) return;
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
  const float of_lost = factors->lost, of_kept = factors->lost * ratio + factors->kept;
  const int64_t padded = codes->groups * GROUP;
  int64_t j = 0;
  for (; j + V::W <= padded; j += V::W) {
    const V::F lost = V::mul(V::load(codes->lost + j), V::set(of_lost));
    V::store(t->bound + j, V::fma(V::load(codes->kept + j), V::set(of_kept), lost));
  }
  for (; j < padded; ++j) t->bound[j] = codes->kept[j] * of_kept + codes->lost[j] * of_lost;
  // A little more than of the largest of them: each of the two may be of another code.
  for (int64_t g = 0; g < codes->groups; ++g)
    t->group_bound[g] = codes->most_kept[g] * of_kept + codes->most_lost[g] * of_lost;
}

}  // namespace
}  // namespace vq_cpu
