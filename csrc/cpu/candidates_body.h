// The codes of a row's list in float64, over the vectors of code_lanes.h (V included before): CODE_LANES codes at
// once, as one sum alone waits for itself.
#pragma once

#include <math.h>

#include "cpu/code_lanes.h"
#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

// Lanes are dimensions, dim >= CODE_LANES.
inline CodeD dot_by_dimensions(const float* row, const float* const (&e)[CODE_LANES], int64_t dim) {
  CodeD sums[CODE_LANES] = {};
  const auto add = [&](int64_t d, int again) {
    CodeD x;
    code_load(x, row + d, CODE_LANES);
    for (int i = 0; i < again; ++i) x[i] = 0.0;
#pragma GCC unroll 8
    for (int i = 0; i < CODE_LANES; ++i) {
      CodeD code;
      code_load(code, e[i] + d, CODE_LANES);
      sums[i] = code_fma(x, code, sums[i]);
    }
  };
  int64_t d = 0;
  for (; d + CODE_LANES <= dim; d += CODE_LANES) add(d, 0);
  if (d < dim) add(dim - CODE_LANES, int(CODE_LANES - (dim - d)));  // some of those before once more, as zeros
  return code_sums(sums);
}

// Lanes are codes: of so few dimensions that a vector does not hold them.
inline CodeD dot_by_codes(const float* row, const float* const (&e)[CODE_LANES], int64_t dim) {
  CodeD sum = {};
  for (int64_t d = 0; d < dim; ++d) {
    CodeF values;
    for (int i = 0; i < CODE_LANES; ++i) values[i] = e[i][d];
    sum = code_fma(CodeD{} + double(row[d]), code_widen(values), sum);
  }
  return sum;
}

double score_listed(const float* row, const float* codes, const double* half_squares, const int32_t* list, int n,
                    int64_t dim, double* scores) {
  CodeD least = CodeD{} + double(INFINITY);
  for (int first = 0; first < n; first += CODE_LANES) {
    const float* e[CODE_LANES];
    CodeD score = {};
    for (int i = 0; i < CODE_LANES; ++i) {
      const int64_t code = list[first + i < n ? first + i : n - 1];
      e[i] = codes + code * dim;
      if (half_squares) score[i] = half_squares[code];
    }
    score -= dim < CODE_LANES ? dot_by_codes(row, e, dim) : dot_by_dimensions(row, e, dim);
    least = score < least ? score : least;
    if (first + CODE_LANES <= n)
      memcpy(scores + first, &score, sizeof score);
    else
      for (int i = 0; first + i < n; ++i) scores[first + i] = score[i];
  }
  double smallest = least[0];
  for (int i = 1; i < CODE_LANES; ++i) smallest = least[i] < smallest ? least[i] : smallest;
  return smallest;
}

}  // namespace
}  // namespace vq_cpu
