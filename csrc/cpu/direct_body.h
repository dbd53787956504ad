// Rows against codes as they are given, over V (one of simd_*.h, included before): nothing is packed but the rows.
//
// Lanes are dimensions for up to as many rows as a vector has lanes (kMostDotRows), and rows beyond.
#pragma once

#include "cpu/row_lanes.h"
#include "cpu/search_body.h"

namespace vq_cpu {
namespace {

constexpr int DOT_ROWS = V::W < kMostDotRows ? V::W : kMostDotRows;

// The sums over the lanes of W vectors, in their order.
inline V::F sum_each(V::F (&v)[V::W]) {
  V::transpose(v);
  V::F sum = v[0];
#pragma GCC unroll 16
  for (int i = 1; i < V::W; ++i) sum = V::add(sum, v[i]);
  return sum;
}

float half_norms(const float* codes, int count, int64_t dim, int l2, float* bias) {
  float largest = 0.0f, squares[V::W];
  for (int first = 0; first < kDirectCodes; first += V::W) {
    const int n = count - first < V::W ? count - first : V::W;
    for (int c = n < 0 ? 0 : n; c < V::W; ++c) bias[first + c] = -INFINITY;
    if (n <= 0) continue;
    V::F sum[V::W];
    for (int c = 0; c < V::W; c += 4) {  // four at a time: one sum alone would wait for itself
      const float* e[4];
      V::F square[4];
      for (int i = 0; i < 4; ++i) {
        e[i] = codes + (first + (c + i < n ? c + i : n - 1)) * dim;
        square[i] = V::set(0.0f);
      }
      over_row(dim, [&](int64_t d, int width) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const V::F v = width == V::W ? V::load(e[i] + d) : V::load_n(e[i] + d, width);
          square[i] = V::fma(v, v, square[i]);
        }
      });
      for (int i = 0; i < 4; ++i) sum[c + i] = square[i];
    }
    V::store(squares, sum_each(sum));
    for (int c = 0; c < n; ++c) {
      const float square = squares[c] < INFINITY ? squares[c] : INFINITY;
      largest = square > largest ? square : largest;
      bias[first + c] = l2 ? -0.5f * squares[c] : 0.0f;
    }
  }
  return largest;
}

// R rows by W / R codes at a time, whose sums are added up over the lanes together.
template <int R>
void sweep_dots_of(const DirectSweep* s) {
  constexpr int CODES = V::W / R;
  V::F best = V::set(-INFINITY), second = best;
  V::I index = V::set(int32_t(0));
  for (int first = 0; first < s->count; first += CODES) {
    const float* e[CODES];
    V::F sum[V::W];
#pragma GCC unroll 16
    for (int c = 0; c < CODES; ++c) {
      e[c] = s->codes + (first + c < s->count ? first + c : s->count - 1) * s->dim;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[c * R + r] = V::load_n(s->bias + first + c, 1);
    }
    over_row(s->dim, [&](int64_t d, int width) {
      V::F row[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) row[r] = V::load(s->x + r * s->pitch + d);
#pragma GCC unroll 16
      for (int c = 0; c < CODES; ++c) {
        const V::F code = width == V::W ? V::load(e[c] + d) : V::load_n(e[c] + d, width);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[c * R + r] = V::fma(row[r], code, sum[c * R + r]);
      }
    });
    const V::F score = sum_each(sum);
    index = V::select(V::gt(score, best), V::set(int32_t(first)), index);
    second = V::max(second, V::min(score, best));
    best = V::max(best, score);
  }
  float bests[V::W], seconds[V::W];
  int32_t firsts[V::W];
  V::store(bests, best);
  V::store(seconds, second);
  V::store(firsts, index);
  for (int r = 0; r < s->rows; ++r) {
    BestTwo<float> lead;
    for (int c = 0; c < CODES; ++c)
      lead.merge({bests[c * R + r], seconds[c * R + r], s->first_code + firsts[c * R + r] + c});
    s->found[r] = lead;
  }
}

void sweep_dots(const DirectSweep* s) {
  if (s->rows == 1) return sweep_dots_of<1>(s);
  if (s->rows == 2) return sweep_dots_of<2>(s);
  if (s->rows <= 4) return sweep_dots_of<4>(s);
  if constexpr (DOT_ROWS == 8) sweep_dots_of<8>(s);
}

template <int R>
void sweep_rows_of(const DirectSweep* s) {
  float best[TILE], second[TILE];
  int32_t index[TILE];
  BestSweep to = {};
  to.best = best;
  to.second = second;
  to.index = index;
  for (int i = 0; i < TILE; ++i) {
    best[i] = second[i] = -INFINITY;
    index[i] = 0;
  }
  for (int first = 0; first < s->count; first += P) {
    const float* e[P];
    V::F score[R][P];
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) {
      e[c] = s->codes + (first + c < s->count ? first + c : s->count - 1) * s->dim;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) score[r][c] = V::set(s->bias[first + c]);
    }
    const float* x = s->x;
    for (int64_t d = 0; d < s->dim; ++d, x += TILE) {
      V::F row[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) row[r] = V::load(x + r * V::W);
#pragma GCC unroll 8
      for (int c = 0; c < P; ++c) {
        const V::F code = V::set(e[c][d]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) score[r][c] = V::fma(row[r], code, score[r][c]);
      }
    }
    keep_best<R>(&to, score, s->first_code + first, true);
  }
  for (int i = 0; i < s->rows; ++i) s->found[i] = {best[i], second[i], index[i]};
}

void sweep_rows(const DirectSweep* s) {
  const int vectors = (s->rows + V::W - 1) / V::W;
  if (vectors == 1) return sweep_rows_of<1>(s);
  if (vectors == 2) return sweep_rows_of<2>(s);
  sweep_rows_of<V::VECTORS>(s);
}

}  // namespace
}  // namespace vq_cpu
