// The sweep of a narrow first pass, over V (one of simd_*.h), N, which packs and scores narrow values, and
// narrow_products, which multiplies them; all included before. Lanes are rows.
#pragma once

#include "cpu/narrow_open_body.h"

namespace vq_cpu {
namespace {

// Groups first .. first + count - 1, of which the first is `number` in its chunk, against R vectors of rows.
// Not inlined: all registers are its own, and a test counts moves between them.
template <int R>
__attribute__((noinline)) void narrow_sweep(const NarrowCodes* codes, const NarrowTile* t, int64_t first,
                                            int64_t count, int number) {
  const float *most_of_lost = codes->most_of_lost, *most_of_norm = codes->most_of_norm, *minus_half = codes->minus_half;
  for (int64_t g = 0; g < count; ++g) {
    const int64_t code = (first + g) * GROUP;
    typename V::I sum[R][GROUP];
    narrow_products<R>(codes->codes + code * codes->steps, codes->start + code, t->rows, codes->steps, sum);
    const V::I tag = V::set(int32_t(number + g));
    const int64_t run = (number + g) / kRunGroups;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V::F scale = N::scale_of_pairs(V::load(t->scale + r * V::W), codes->scale[first + g]);
      const V::F of_lost = V::mul(V::load(t->lost + r * V::W), V::set(most_of_lost[first + g]));
      const V::F bound = V::fma(V::load(t->norm + r * V::W), V::set(most_of_norm[first + g]), of_lost);
      V::F value[GROUP];
#pragma GCC unroll 8
      for (int c = 0; c < GROUP; ++c) value[c] = N::add_product(sum[r][c], scale, V::set(minus_half[code + c]));
#pragma GCC unroll 4
      for (int n = GROUP / 2; n; n /= 2)
#pragma GCC unroll 4
        for (int c = 0; c < n; ++c) value[c] = V::max(value[c], value[c + n]);
      V::F most = V::add(V::max(value[0], V::set(-FLT_MAX)), bound);
      most = N::tagged(most, tag, kChunkGroups - 1);
      V::store(t->most + (number + g) * NARROW_TILE + r * V::W, most);
      float* best = t->run_best + run * NARROW_TILE + r * V::W;
      float* rest = t->run_rest + run * NARROW_TILE + r * V::W;
      const V::F before = V::load(best);
      V::store(best, V::max(most, before));
      V::store(rest, V::max(V::min(most, before), V::load(rest)));
    }
  }
}

// As many vectors of rows as are in use.
template <int R>
void narrow_sweep_vectors(const NarrowCodes* codes, const NarrowTile* t, int vectors, int64_t first, int64_t count,
                          int number) {
  if constexpr (R > 1) {
    if (vectors < R) return narrow_sweep_vectors<R - 1>(codes, t, vectors, first, count, number);
  }
  narrow_sweep<R>(codes, t, first, count, number);
}

// A few lines at a time: the processor leaves out what is more than it can wait for.
inline void narrow_fetch(const NextRows& rows, int first, int n) {
  constexpr int64_t kLine = 64;
  for (int i = first; i < first + n && i < rows.count; ++i)
    for (int64_t byte = 0; byte < rows.bytes; byte += kLine)
      __builtin_prefetch(rows.data + i * rows.pitch + byte, 0, 3);
}

void narrow_search(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t) {
  const int vectors = (t->n + V::W - 1) / V::W;
  for (int row = 0; row < NARROW_TILE; ++row) {
    t->least[row] = t->norm[row] < INFINITY ? kNarrowLeast : NAN;  // NaN: nothing reaches it
    t->counts[row] = t->lead[row] = 0;
    t->best[row] = t->second[row] = -FLT_MAX;
  }
  constexpr int64_t kGroups = kChunkGroups, kFetchGroups = 4;
  constexpr int kFetchRows = 3;  // for every so many groups
  int fetched = 0;
  for (int64_t first = 0; first < codes->groups; first += kGroups) {
    const int64_t count = codes->groups - first < kGroups ? codes->groups - first : kGroups;
    for (int i = 0; i < kNarrowRuns * NARROW_TILE; ++i) t->run_best[i] = t->run_rest[i] = -FLT_MAX;
    for (int64_t g = 0; g < count; g += kFetchGroups) {
      narrow_fetch(t->next, fetched, kFetchRows);
      fetched += kFetchRows;
      const int64_t some = count - g < kFetchGroups ? count - g : kFetchGroups;
      narrow_sweep_vectors<V::VECTORS>(codes, t, vectors, first + g, some, int(g));
    }
    for (int v = 0; v < vectors; ++v)
      narrow_reduce(codes, factors, t, v * V::W, first, count, first + count == codes->groups);
  }
  for (int v = 0; v < vectors; ++v) narrow_lead(codes, factors, t, v * V::W);
}

}  // namespace
}  // namespace vq_cpu
