// Work on codes over V (one of simd_*.h, included before).
#pragma once

#include "cpu/code_lanes.h"
#include "cpu/kernels.h"
#include "cpu/row_lanes.h"

namespace vq_cpu {
namespace {

void inspect_codes(const float* codes, int64_t k, int64_t dim, uint8_t* finite, uint64_t* hashes) {
  for (int64_t j = 0; j < k; ++j, codes += dim) {
    WordsU hash = {}, largest = {};
    for (int i = 0; i < V::W; ++i) hash[i] = uint32_t(i + 1) * 0x9e3779b1u;
    over_row(dim, [&](int64_t d, int n) {
      WordsU bits = {};
      if (n == V::W)
        memcpy(&bits, codes + d, sizeof bits);
      else
        memcpy(&bits, codes + d, size_t(n) * sizeof(float));
      const WordsU magnitude = bits & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
      bits = magnitude ? bits : magnitude;  // zeros of either sign are one value
      hash = (hash ^ bits) * 0x85ebca6bu;
      hash = hash << 17 | hash >> 15;
    });
    const WordsU bad = largest >= 0x7f800000u ? ~WordsU{} : WordsU{};
    uint64_t pairs[V::W / 2], is_bad[V::W / 2], all = 0, any_bad = 0;
    memcpy(pairs, &hash, sizeof pairs);
    memcpy(is_bad, &bad, sizeof is_bad);
    for (int i = 0; i < V::W / 2; ++i) {
      any_bad |= is_bad[i];
      all = (all ^ pairs[i]) * 0x9fb21c651e98df25u;
    }
    finite[j] = !any_bad;
    hashes[j] = all ^ all >> 32;
  }
}

void square_distances(const float* codes, int64_t count, int64_t dim, const float* centre, double* square) {
  for (int64_t j = 0; j < count; ++j, codes += dim) {
    CodeD even = {}, odd = {};  // each waits for itself alone
    const auto add = [&](int64_t d, int64_t n, CodeD& sum) __attribute__((always_inline)) {
      CodeD e, c = {};
      code_load(e, codes + d, n);
      if (centre) code_load(c, centre + d, n);
      sum = code_fma(e - c, e - c, sum);
    };
    int64_t d = 0;
    for (; d + 2 * CODE_LANES <= dim; d += 2 * CODE_LANES) {
      add(d, CODE_LANES, even);
      add(d + CODE_LANES, CODE_LANES, odd);
    }
    for (; d < dim; d += CODE_LANES) add(d, dim - d < CODE_LANES ? dim - d : int64_t(CODE_LANES), even);
    square[j] = code_sum_halves(even + odd);
  }
}

double pack_code_float32(const float* code, Centring centring, int64_t dim, float* out, int64_t pitch) {
  CodeD square = {};
  over_code(dim, [&](int64_t d, int64_t n) {
    CodeF e, c = {};
    code_load(e, code + d, n);
    if (centring.centre) code_load(c, centring.centre + d, n);
    e *= centring.scale;
    const CodeF packed = e - c;
    const CodeD exact = __builtin_convertvector(e, CodeD) - __builtin_convertvector(c, CodeD);
    square += exact * exact;
    for (int64_t i = 0; i < n; ++i) out[(d + i) * pitch] = packed[i];
  });
  return code_sum(square);
}

template <int R>
void score_some(const double* rows, int64_t pitch, const float* code, int64_t dim, bool l2, double* scores) {
  CodeD sum[R] = {};
  over_code(dim, [&](int64_t d, int64_t n) {
    CodeD e;
    code_load(e, code + d, n);
    const CodeD half = l2 ? 0.5 * e : CodeD{};
    for (int r = 0; r < R; ++r) {
      CodeD x;
      memcpy(&x, rows + r * pitch + d, sizeof x);
      sum[r] += (half - x) * e;
    }
  });
  for (int r = 0; r < R; ++r) scores[r] = code_sum(sum[r]);
}

double score_rows(const double* rows, int n, int64_t pitch, const float* code, int64_t dim, int l2,
                  double* scores) {
  int r = 0;
  for (; r + 4 <= n; r += 4) score_some<4>(rows + r * pitch, pitch, code, dim, l2, scores + r);
  for (; r < n; ++r) score_some<1>(rows + r * pitch, pitch, code, dim, l2, scores + r);
  CodeD square = {};
  over_code(dim, [&](int64_t d, int64_t count) {
    CodeD e;
    code_load(e, code + d, count);
    square += e * e;
  });
  return code_sum(square);
}

}  // namespace
}  // namespace vq_cpu
