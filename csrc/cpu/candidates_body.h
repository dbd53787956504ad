// The codes of a row's list in float64, over the vectors of code_lanes.h (V included before): several codes at once,
// as one sum alone waits for itself.
#pragma once

#include "cpu/code_lanes.h"
#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

constexpr int LISTED = V::W / 2;  // codes at once

// Lanes are dimensions, dim >= CODE_LANES.
inline void dot_by_dimensions(const float* row, const float* const (&e)[LISTED], int64_t dim, double* dots) {
  CodeD sums[LISTED] = {};
  const auto add = [&](int64_t d, int again) {
    CodeD x;
    code_load(x, row + d, CODE_LANES);
    for (int i = 0; i < again; ++i) x[i] = 0.0;
#pragma GCC unroll 8
    for (int i = 0; i < LISTED; ++i) {
      CodeD code;
      code_load(code, e[i] + d, CODE_LANES);
      sums[i] = code_fma(x, code, sums[i]);
    }
  };
  int64_t d = 0;
  for (; d + CODE_LANES <= dim; d += CODE_LANES) add(d, 0);
  if (d < dim) add(dim - CODE_LANES, int(CODE_LANES - (dim - d)));  // some of those before once more, as zeros
  for (int i = 0; i < LISTED; ++i) dots[i] = code_sum_halves(sums[i]);
}

// Lanes are codes: of so few dimensions that a vector does not hold them.
inline void dot_by_codes(const float* row, const float* const (&e)[LISTED], int64_t dim, double* dots) {
  CodeD sum = {};
  for (int64_t d = 0; d < dim; ++d) {
    CodeF values;
    for (int i = 0; i < LISTED; ++i) values[i] = e[i][d];
    sum = code_fma(CodeD{} + double(row[d]), code_widen(values), sum);
  }
  memcpy(dots, &sum, sizeof sum);
}

void dot_listed(const float* row, const float* codes, const int32_t* list, int n, int64_t dim, double* dots) {
  for (int first = 0; first < n; first += LISTED) {
    const float* e[LISTED];
    double found[LISTED];
    for (int i = 0; i < LISTED; ++i) e[i] = codes + int64_t(list[first + i < n ? first + i : n - 1]) * dim;
    if (dim < CODE_LANES)
      dot_by_codes(row, e, dim, found);
    else
      dot_by_dimensions(row, e, dim, found);
    for (int i = 0; i < LISTED && first + i < n; ++i) dots[first + i] = found[i];
  }
}

}  // namespace
}  // namespace vq_cpu
