// The search sweep over V (one of simd_*.h, included before): products and argmin in registers.
//
// score = x.e + bias is accumulated over d in one order for every row and code, so that a row's
// scores do not depend on its neighbours. Sums stay in registers for a tile of VECTORS * W rows by
// one panel of codes.
#pragma once

#include <type_traits>

#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

constexpr int TILE = V::W * V::VECTORS;
constexpr int P = V::PANEL;

// Running best, its index and second best; a tie keeps the earlier code.
template <int R>
inline __attribute__((always_inline)) void keep_best(const BestSweep* s, const V::F (&score)[R][P],
                                                     int32_t code, bool rarely) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    V::F second = V::load(s->second + r * V::W);
    if (rarely) {
      V::F top = score[r][0];
#pragma GCC unroll 8
      for (int c = 1; c < P; ++c) top = V::max(top, score[r][c]);
      if (!V::any(V::gt(top, second))) continue;
    }
    V::F best = V::load(s->best + r * V::W);
    V::I index = V::load(s->index + r * V::W);
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) {
      const V::F a = score[r][c];
      const V::M better = V::gt(a, best);
      index = V::select(better, V::set(code + c), index);
      second = V::max(second, V::min(a, best));
      best = V::max(best, a);
    }
    V::store(s->best + r * V::W, best);
    V::store(s->second + r * V::W, second);
    V::store(s->index + r * V::W, index);
  }
}

template <int R>
inline __attribute__((always_inline)) void keep_candidates(const CandidateSweep* s, const V::F (&score)[R][P],
                                                           int32_t code) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const V::F threshold = V::load(s->threshold + r * V::W);
    V::F top = score[r][0];
#pragma GCC unroll 8
    for (int c = 1; c < P; ++c) top = V::max(top, score[r][c]);
    if (!V::any(V::ge(top, threshold))) continue;
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) {
      for (unsigned lanes = V::bits(V::ge(score[r][c], threshold)); lanes; lanes &= lanes - 1) {
        const int row = r * V::W + __builtin_ctz(lanes);
        const int32_t n = s->counts[row]++;
        if (n < s->capacity) s->candidates[int64_t(row) * s->capacity + n] = code + c;
      }
    }
  }
}

template <int R, class Sweep>
void sweep_tile(const Sweep* s) {
  // Skipping the update where nothing can enter pays once most panels change nothing.
  const bool rarely = s->panel_count >= 64;
  for (int64_t p = 0; p < s->panel_count; ++p) {
    const float* e = s->panels + p * s->dim * P;
    const float* x = s->x;
    V::F score[R][P];
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) score[r][c] = V::set(s->bias[p * P + c]);
    for (int64_t d = 0; d < s->dim; ++d, e += P, x += TILE) {
      V::F row[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) row[r] = V::load(x + r * V::W);
#pragma GCC unroll 8
      for (int c = 0; c < P; ++c) {
        const V::F code = V::set(e[c]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) score[r][c] = V::fma(row[r], code, score[r][c]);
      }
    }
    const int32_t code = s->first_code + int32_t(p * P);
    if constexpr (std::is_same_v<Sweep, CandidateSweep>) {
      keep_candidates<R>(s, score, code);
    } else if (rarely) {
      keep_best<R>(s, score, code, true);
    } else {
      keep_best<R>(s, score, code, false);
    }
  }
}

template <class Sweep>
inline void sweep_any(const Sweep* s) {
  switch (s->vectors) {
    case 1:
      return sweep_tile<1>(s);
    case 2:
      return sweep_tile<2>(s);
    default:
      return sweep_tile<V::VECTORS>(s);
  }
}

void sweep(const BestSweep* s) { sweep_any(s); }

void collect(const CandidateSweep* s) { sweep_any(s); }

}  // namespace
}  // namespace vq_cpu
