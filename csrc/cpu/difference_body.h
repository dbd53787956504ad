// Rows against codes by their differences, over V (one of simd_*.h, included before): lanes are rows.
//
// |x - e|^2 summed as it stands has an error relative to itself, wherever rows and codes lie: far from any centre, or
// with one coordinate that is much longer than the others. It costs an addition more than a product.
#pragma once

#include <float.h>

#include "cpu/search_body.h"

namespace vq_cpu {
namespace {

// Leaves out what the row's limit has ruled out since it was listed.
inline void drop_far(const DifferenceSweep* s, int row) {
  int32_t* candidates = s->candidates + row * s->capacity;
  float* squares = s->squares + row * s->capacity;
  int n = 0;
  for (int i = 0; i < s->counts[row]; ++i) {
    if (!(squares[i] <= s->limit[row])) continue;
    candidates[n] = candidates[i];
    squares[n++] = squares[i];
  }
  s->counts[row] = n;
}

inline void list_near(const DifferenceSweep* s, int row, int32_t code, float square) {
  if (s->counts[row] > s->capacity) return;  // given up
  if (s->counts[row] == s->capacity) drop_far(s, row);
  if (s->counts[row] == s->capacity) {
    s->counts[row] = s->capacity + 1;
    return;
  }
  const int at = row * s->capacity + s->counts[row]++;
  s->candidates[at] = code;
  s->squares[at] = square;
}

// Squares of panels that reach a row's limit of then, by vectors of rows. They are listed together: which lanes are near
// is a jump that is guessed wrongly, and most of them no longer are once all of a few dozen panels have been met.
template <int R>
struct NearPanels {
  static constexpr int kMost = 32;

  alignas(64) float squares[R][kMost][P][V::W];
  int32_t code[R][kMost];
  int count[R] = {};

  void list(const DifferenceSweep* s, int r) {
    const V::F limit = V::load(s->limit + r * V::W);
    for (int i = 0; i < count[r]; ++i)
      for (int c = 0; c < P; ++c)
        for (unsigned near = V::bits(V::ge(limit, V::load(squares[r][i][c]))); near; near &= near - 1) {
          const int lane = __builtin_ctz(near);
          list_near(s, r * V::W + lane, code[r][i] + c, squares[r][i][c][lane]);
        }
    count[r] = 0;
  }
};

template <int R>
void sweep_differences_of(const DifferenceSweep* s) {
  NearPanels<R> near;
  for (int64_t first = 0; first < s->count; first += P) {
    const float* e[P];
    V::F square[R][P];
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) {
      const bool usable = first + c < s->count && s->usable[first + c];
      e[c] = usable ? s->codes + (first + c) * s->dim : s->stand_in;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) square[r][c] = V::set(usable ? 0.0f : INFINITY);
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
        for (int r = 0; r < R; ++r) {
          const V::F difference = V::sub(row[r], code);
          square[r][c] = V::fma(difference, difference, square[r][c]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      V::F least = square[r][0];
#pragma GCC unroll 8
      for (int c = 1; c < P; ++c) least = V::min(least, square[r][c]);
      V::F limit = V::load(s->limit + r * V::W);
      if (!V::any(V::ge(limit, least))) continue;
      limit = V::min(V::fma(least, V::set(s->factor), V::load(s->slack + r * V::W)), limit);
      V::store(s->limit + r * V::W, limit);
#pragma GCC unroll 8
      for (int c = 0; c < P; ++c) V::store(near.squares[r][near.count[r]][c], square[r][c]);
      near.code[r][near.count[r]++] = s->first_code + int32_t(first);
      if (near.count[r] == NearPanels<R>::kMost) near.list(s, r);
    }
  }
  for (int r = 0; r < R; ++r) near.list(s, r);
}

void sweep_differences(const DifferenceSweep* s) {
  switch (s->vectors) {
    case 1:
      return sweep_differences_of<1>(s);
    case 2:
      return sweep_differences_of<2>(s);
    default:
      return sweep_differences_of<V::VECTORS>(s);
  }
}

}  // namespace
}  // namespace vq_cpu
