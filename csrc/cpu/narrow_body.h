// The sweep of a narrow first pass, over V (one of simd_*.h), N, which packs and scores narrow values, and
// narrow_products, which multiplies them; all included before. Lanes are rows.
#pragma once

#include "cpu/narrow_open_body.h"

namespace vq_cpu {
namespace {

// Rows that are as many times as long as others, or less, share one bound of each group.
constexpr float kMostLengths = 2.0f;

// Groups first .. first + count - 1, of which the first is `number` in its chunk, against R vectors of rows.
// ALIKE: t->alike. Not inlined: all registers are its own, and a test counts moves between them.
template <int R, bool ALIKE>
__attribute__((noinline)) void narrow_sweep(const NarrowCodes* codes, const NarrowTile* t, int64_t first,
                                            int64_t count, int number) {
  for (int64_t g = 0; g < count; ++g) {
    const int64_t code = (first + g) * GROUP;
    typename V::I sum[R][GROUP];
    narrow_products<R>(codes->codes + code * codes->steps, codes->start + code, t->rows, codes->steps, sum);
    const V::I tag = V::set(int32_t(number + g));
    const int64_t run = (number + g) / kRunGroups;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V::F norm = V::load(t->norm + r * V::W), scale = V::load(t->scale + r * V::W);
      V::F most = V::set(-FLT_MAX);
#pragma GCC unroll 8
      for (int c = 0; c < GROUP; ++c) {
        const V::F rest = ALIKE ? V::set(t->bias[code + c])
                                : V::fma(norm, V::set(t->bound[code + c]), V::set(codes->minus_half[code + c]));
        most = V::max(most, N::add_product(sum[r][c], codes->scale + code + c, scale, rest));
      }
      if (ALIKE) most = V::fma(norm, V::set(t->common[first + g]), most);
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
  if (t->alike)
    narrow_sweep<R, true>(codes, t, first, count, number);
  else
    narrow_sweep<R, false>(codes, t, first, count, number);
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

// sums [n] = lost of_lost + kept of_kept (+ rest).
inline void narrow_sum_bounds(const float* lost, const float* kept, const float* rest, float of_lost, float of_kept,
                              int64_t n, float* sums) {
  int64_t j = 0;
  for (; j + V::W <= n; j += V::W) {
    const V::F sum = V::fma(V::load(lost + j), V::set(of_lost), rest ? V::load(rest + j) : V::set(0.0f));
    V::store(sums + j, V::fma(V::load(kept + j), V::set(of_kept), sum));
  }
  for (; j < n; ++j) sums[j] = kept[j] * of_kept + (lost[j] * of_lost + (rest ? rest[j] : 0.0f));
}

void narrow_set_bounds(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t) {
  // Of the tile's rows; those without a bound find nothing in any case.
  float ratio = 0.0f, shortest = INFINITY, longest = 0.0f;
  for (int row = 0; row < t->n; ++row) {
    const float norm = t->norm[row], own = t->lost[row] / norm;
    if (own > ratio) ratio = own;
    if (norm < shortest) shortest = norm;
    if (norm > longest && norm < INFINITY) longest = norm;
  }
  t->alike = longest <= kMostLengths * shortest;
  t->longest = longest;
  const float of_lost = factors->lost, of_kept = factors->lost * ratio + factors->kept;
  const int64_t padded = codes->groups * GROUP;
  narrow_sum_bounds(codes->lost, codes->kept, nullptr, of_lost, of_kept, padded, t->bound);
  if (t->alike)
    narrow_sum_bounds(codes->more_lost, codes->more_kept, codes->minus_half, longest * of_lost, longest * of_kept,
                      padded, t->bias);
  for (int64_t g = 0; t->alike && g < codes->groups; ++g)
    t->common[g] = codes->least_kept[g] * of_kept + codes->least_lost[g] * of_lost;
  // A little more than of the largest of them: each of the two may be of another code.
  for (int64_t g = 0; g < codes->groups; ++g)
    t->group_bound[g] = codes->most_kept[g] * of_kept + codes->most_lost[g] * of_lost;
}

}  // namespace
}  // namespace vq_cpu
