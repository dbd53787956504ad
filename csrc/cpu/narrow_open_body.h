// What a narrow sweep leaves open, over V (one of simd_*.h) and N, which packs and scores narrow values; both included
// before.
//
// Lanes are rows. Of each group of codes the sweep leaves the largest upper bound, and of each run of groups the
// largest of these and the next. The group of a row's largest is looked into, code by code; others where the score of
// the code that comes out of it does not rule them out.
#pragma once

#include <float.h>
#include <math.h>
#include <string.h>

#include "cpu/narrow.h"

namespace vq_cpu {
namespace {

constexpr int NARROW_TILE = V::W * V::VECTORS;
constexpr int GROUP = V::PANEL;
static_assert((GROUP & (GROUP - 1)) == 0, "codes of one group differ in the last bits of their numbers alone");
constexpr int kChunkGroups = kNarrowChunk / GROUP, kRunGroups = kChunkGroups / kNarrowRuns;
static_assert((kChunkGroups & (kChunkGroups - 1)) == 0, "the number of a group of a chunk fills the last bits");
// What a group's number in the last bits of a value, and rounding, change of it.
constexpr float kTagError = kChunkGroups * 0x1p-23f + 0x1p-21f;

inline V::F magnitude(V::F v) { return V::max(v, V::sub(V::set(0.0f), v)); }

// Leaves out the groups that the row's least score has ruled out since they were listed.
inline void narrow_drop(NarrowTile* t, int row) {
  int32_t* groups = t->groups + row * kNarrowCandidates;
  float* upper = t->upper + row * kNarrowCandidates;
  int n = 0;
  for (int i = 0; i < t->counts[row]; ++i) {
    if (!(upper[i] >= t->least[row])) continue;
    groups[n] = groups[i];
    upper[n++] = upper[i];
  }
  t->counts[row] = n;
}

inline void narrow_give_up(NarrowTile* t, int row) {
  t->counts[row] = kNarrowCandidates + 1;
  t->least[row] = INFINITY;
}

// Lists a group of a chunk, which begins with group `first`, for a row.
inline void narrow_list(NarrowTile* t, int row, int64_t first, int64_t number) {
  int32_t& n = t->counts[row];
  if (n == kNarrowCandidates) narrow_drop(t, row);
  if (n >= kNarrowCandidates) return narrow_give_up(t, row);
  t->groups[row * kNarrowCandidates + n] = int32_t(first + number);
  t->upper[row * kNarrowCandidates + n++] = t->most[number * NARROW_TILE + row];
}

// A lower bound of the best score of a group, by its likely best code alone.
inline float narrow_low(const NarrowCodes* codes, const NarrowFactors* factors, const NarrowTile* t, int row,
                        int64_t group) {
  const typename N::Group values = N::upper(codes, t, NARROW_TILE, row, group), most = N::most(values);
  const int64_t code = group * GROUP + N::first_of(values, most);
  const float bound = t->norm[row] * codes->of_norm[code] + t->lost[row] * codes->of_lost[code];
  return N::get(most) - twice_bound(*factors, bound, -codes->minus_half[code]);
}

// Raises the least scores of one vector of rows by the groups of their largest upper bounds.
inline void narrow_raise(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t, int base,
                         V::F best, V::I lead, int64_t first, unsigned open) {
  int32_t leads[V::W];
  float least[V::W];
  V::store(leads, lead);
  const V::F half = V::fma(V::set(factors->half), N::gather(codes->most_half + first, lead), V::set(factors->offset));
  const V::F of_lost = V::fma(V::load(t->lost + base), N::gather(codes->most_of_lost + first, lead), half);
  const V::F reach = V::fma(V::load(t->norm + base), N::gather(codes->most_of_norm + first, lead), of_lost);
  V::store(least, V::fma(reach, V::set(-2.001f), best));
  for (unsigned left = open; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (!codes->uneven[first + leads[lane]]) continue;
    // One long code's bound is not that of the others.
    least[lane] = narrow_low(codes, factors, t, base + lane, first + leads[lane]);
  }
  const V::F low = V::sub(V::load(least), V::load(t->slack + base));
  // Less what a group's number may have added to `best`, may take from what is compared, and rounding.
  const V::F sizes = V::fma(magnitude(best), V::set(1.01f), magnitude(low));
  const V::F down = V::fma(sizes, V::set(-kTagError), low);
  const V::F before = V::load(t->least + base);
  V::store(t->least + base, V::select(V::gt(down, before), down, before));
}

// Lists the open groups of a run but the one of the largest bound.
inline void narrow_list_rest(NarrowTile* t, int base, int64_t first, int64_t count, int run, unsigned rows) {
  const V::F least = V::load(t->least + base), best = V::load(t->run_best + run * NARROW_TILE + base);
  for (int64_t g = run * kRunGroups; g < count && g < (run + 1) * kRunGroups; ++g) {
    const V::F most = V::load(t->most + base + g * NARROW_TILE);
    unsigned hit = V::bits(V::ge(most, least)) & V::bits(V::gt(best, most)) & rows;
    for (; hit; hit &= hit - 1) narrow_list(t, base + __builtin_ctz(hit), first, g);
  }
}

// Gives up those rows of which most groups of a chunk are open; returns which they are.
inline unsigned narrow_give_up_most(NarrowTile* t, int base, int64_t count, unsigned rows) {
  const V::F least = V::load(t->least + base);
  const V::I one = V::set(int32_t(1)), zero = V::set(int32_t(0));
  V::I open = zero;
  for (int64_t g = 0; g < count; ++g)
    open = N::add(open, V::select(V::ge(V::load(t->most + base + g * NARROW_TILE), least), one, zero));
  int32_t counts[V::W];
  V::store(counts, open);
  unsigned given_up = 0;
  for (; rows; rows &= rows - 1) {
    const int lane = __builtin_ctz(rows);
    if (counts[lane] <= kChunkGroups * 3 / 4) continue;
    narrow_give_up(t, base + lane);
    given_up |= 1u << lane;
  }
  return given_up;
}

// What is open after a chunk of `count` groups, of which t->most and its runs are known, for one vector of rows. The
// groups of the last chunk are not listed: they can be read from these.
inline void narrow_reduce(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t, int base,
                          int64_t first, int64_t count, bool last) {
  const int lanes = t->n - base < V::W ? t->n - base : V::W;
  const unsigned in_use = (1u << lanes) - 1u;
  const V::F none = V::set(-FLT_MAX);
  V::F best = none, next = none;
  for (int run = 0; run < kNarrowRuns; ++run) {
    const V::F value = V::load(t->run_best + run * NARROW_TILE + base);
    next = V::max(V::max(next, V::load(t->run_rest + run * NARROW_TILE + base)), V::min(best, value));
    best = V::max(best, value);
  }
  const unsigned open = V::bits(V::ge(best, V::load(t->least + base))) & in_use;
  if (!open) return;
  const V::I number = N::tag_of(best, kChunkGroups - 1), group = N::add(number, V::set(int32_t(first)));
  const V::F before = V::load(t->best + base);
  V::store(t->lead + base, V::select(V::gt(best, before), group, V::load(t->lead + base)));
  V::store(t->best + base, V::max(best, before));
  V::store(t->second + base, V::max(V::load(t->second + base), V::max(next, V::min(best, before))));
  if (last) return;
  narrow_raise(codes, factors, t, base, best, number, first, open);
  const V::F least = V::load(t->least + base);
  int32_t hits[(kNarrowRuns + 1) * V::W];  // group * W + lane
  int n = 0;
  unsigned more[kNarrowRuns], everywhere = open;
  for (int run = 0; run < kNarrowRuns; ++run) {
    const V::F value = V::load(t->run_best + run * NARROW_TILE + base);
    const unsigned hit = V::bits(V::ge(value, least)) & open;
    n += N::lanes_of(hit, N::tag_of(value, kChunkGroups - 1), hits + n);
    more[run] = V::bits(V::ge(V::load(t->run_rest + run * NARROW_TILE + base), least)) & open;
    everywhere &= more[run];
  }
  const unsigned given_up = everywhere ? narrow_give_up_most(t, base, count, everywhere) : 0;
  for (int run = 0; run < kNarrowRuns; ++run)
    if (more[run] & ~given_up) narrow_list_rest(t, base, first, count, run, more[run] & ~given_up);
  for (int h = 0; h < n; ++h) narrow_list(t, base + hits[h] % V::W, first, hits[h] / V::W);
}

// Of one vector of rows the codes of their largest upper bounds, and what any other code can reach. Without a jump, so
// that rows do not wait for each other; rows that found no group look into one as well.
inline void narrow_lead(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t, int base) {
  for (int row = base; row < base + V::W; ++row)
    N::store(t->leading + row * GROUP, N::upper(codes, t, NARROW_TILE, row, t->lead[row]));
  V::F value[V::W];  // of a row, then of a code; those beyond the group are not used
  for (int lane = 0; lane < V::W; ++lane) value[lane] = V::load(t->leading + (base + lane) * GROUP);
  V::transpose(value);
  V::F top = value[0], next = V::load(t->second + base);
  V::I number = V::set(int32_t(0)), code = V::load(t->lead + base);
  for (int c = 1; c < GROUP; ++c) {
    number = V::select(V::gt(value[c], top), V::set(int32_t(c)), number);
    next = V::max(next, V::min(value[c], top));
    top = V::max(value[c], top);
  }
  for (int factor = 1; factor < GROUP; factor *= 2) code = N::add(code, code);
  code = N::add(code, number);
  const V::F half = V::fma(V::set(-factors->half), N::gather(codes->minus_half, code), V::set(factors->offset));
  const V::F of_lost = V::fma(V::load(t->lost + base), N::gather(codes->of_lost, code), half);
  const V::F reach = V::fma(V::load(t->norm + base), N::gather(codes->of_norm, code), of_lost);
  const V::F low = V::sub(V::fma(reach, V::set(-2.001f), top), V::load(t->slack + base));
  const V::F least = V::fma(magnitude(low), V::set(-kTagError), low);
  V::store(t->code + base, code);
  V::store(t->others + base, V::fma(magnitude(next), V::set(kTagError), next));
  V::store(t->doubtful + base, V::select(V::ge(next, least), V::set(int32_t(1)), V::set(int32_t(0))));
}

// NarrowKernels::open_codes.
int narrow_open_codes(const NarrowCodes* codes, const NarrowTile* t, int row, float limit, int32_t* open,
                      float* upper) {
  const float least = limit - fabsf(limit) * kTagError;
  const int64_t lead = t->lead[row];
  const typename N::Group others = N::without(N::load(t->leading + row * GROUP), int(t->code[row] - lead * GROUP));
  int n = N::append(others, least, int32_t(lead * GROUP), open, upper);
  const auto look_into = [&](int64_t group) {
    if (group == lead || n > kNarrowCandidates) return;
    n += N::append(N::upper(codes, t, NARROW_TILE, row, group), least, int32_t(group * GROUP), open + n, upper + n);
  };
  for (int i = 0; i < t->counts[row]; ++i)
    if (t->upper[row * kNarrowCandidates + i] >= least) look_into(t->groups[row * kNarrowCandidates + i]);
  // The last chunk.
  const int64_t first = (codes->groups - 1) / kChunkGroups * kChunkGroups, count = codes->groups - first;
  const float *best = t->run_best + row, *rest = t->run_rest + row;
  unsigned runs = 0, more = 0;
  for (int run = 0; run < kNarrowRuns; ++run) {
    runs |= unsigned(best[run * NARROW_TILE] >= least) << run;
    more |= unsigned(rest[run * NARROW_TILE] >= least) << run;
  }
  if (lead >= first) runs &= ~(1u << (lead - first) / kRunGroups);
  for (; runs; runs &= runs - 1) {
    int32_t bits;
    memcpy(&bits, best + __builtin_ctz(runs) * NARROW_TILE, sizeof bits);
    look_into(first + (bits & (kChunkGroups - 1)));
  }
  for (; more; more &= more - 1) {
    const int run = __builtin_ctz(more);
    for (int64_t g = run * kRunGroups; g < count && g < (run + 1) * kRunGroups; ++g) {
      const float most = t->most[g * NARROW_TILE + row];
      if (most >= least && most < best[run * NARROW_TILE]) look_into(first + g);
    }
  }
  return n;
}

}  // namespace
}  // namespace vq_cpu
