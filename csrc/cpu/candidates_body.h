// The codes of a row's list in float64, over the vectors of code_lanes.h (V included before): several codes at once,
// as one sum alone waits for itself.
#pragma once

#include "cpu/code_lanes.h"
#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

constexpr int LISTED = V::W / 2;  // codes at once

// Products of values as they are given.
struct PlainTerms {
  static CodeD of_row(CodeD x, CodeD, CodeD) { return x; }
  static CodeD add(CodeD x, CodeD code, CodeD, CodeD, CodeD sum) { return code_fma(x, code, sum); }
};

// (x' - e'/2) e' of values that are centred; cosine: x e', where the code alone is.
template <bool kL2>
struct CentredTerms {
  static CodeD of_row(CodeD x, CodeD scale, CodeD c) { return kL2 ? code_fma(x, scale, -c) : x * scale; }
  static CodeD add(CodeD x, CodeD code, CodeD scale, CodeD c, CodeD sum) {
    code = code_fma(code, scale, -c);
    return code_fma(kL2 ? code_fma(CodeD{} - 0.5, code, x) : x, code, sum);
  }
};

// Lanes are dimensions, dim >= CODE_LANES.
template <class Terms>
inline void score_by_dimensions(const float* row, const float* const (&e)[LISTED], Centring centring, int64_t dim,
                                double* scores) {
  CodeD sums[LISTED] = {};
  const auto add = [&](int64_t d, CodeD scale, CodeD used) {
    CodeD x, c = {};
    code_load(x, row + d, CODE_LANES);
    if (centring.centre) code_load(c, centring.centre + d, CODE_LANES);
    c *= used;
    x = Terms::of_row(x * used, scale, c);
#pragma GCC unroll 8
    for (int i = 0; i < LISTED; ++i) {
      CodeD code;
      code_load(code, e[i] + d, CODE_LANES);
      sums[i] = Terms::add(x, code, scale, c, sums[i]);
    }
  };
  CodeD scale = CodeD{} + double(centring.scale), used = CodeD{} + 1.0;
  int64_t d = 0;
  for (; d + CODE_LANES <= dim; d += CODE_LANES) add(d, scale, used);
  if (d < dim) {  // with some of those before once more, which count as zero
    for (int i = 0; i < CODE_LANES - (dim - d); ++i) scale[i] = used[i] = 0.0;
    add(dim - CODE_LANES, scale, used);
  }
  for (int i = 0; i < LISTED; ++i) scores[i] = code_sum_halves(sums[i]);
}

// Lanes are codes: of so few dimensions that a vector does not hold them.
template <class Terms>
inline void score_by_codes(const float* row, const float* const (&e)[LISTED], Centring centring, int64_t dim,
                           double* scores) {
  const CodeD scale = CodeD{} + double(centring.scale);
  CodeD sum = {};
  for (int64_t d = 0; d < dim; ++d) {
    const CodeD c = CodeD{} + (centring.centre ? double(centring.centre[d]) : 0.0);
    CodeF values;
    for (int i = 0; i < LISTED; ++i) values[i] = e[i][d];
    sum = Terms::add(Terms::of_row(CodeD{} + double(row[d]), scale, c), code_widen(values), scale, c, sum);
  }
  memcpy(scores, &sum, sizeof sum);
}

template <class Terms>
void score_list(const float* row, const float* codes, const int32_t* list, int n, Centring centring, int64_t dim,
                double* scores) {
  for (int first = 0; first < n; first += LISTED) {
    const float* e[LISTED];
    double found[LISTED];
    for (int i = 0; i < LISTED; ++i) e[i] = codes + int64_t(list[first + i < n ? first + i : n - 1]) * dim;
    if (dim < CODE_LANES)
      score_by_codes<Terms>(row, e, centring, dim, found);
    else
      score_by_dimensions<Terms>(row, e, centring, dim, found);
    for (int i = 0; i < LISTED && first + i < n; ++i) scores[first + i] = found[i];
  }
}

void dot_listed(const float* row, const float* codes, const int32_t* list, int n, int64_t dim, double* dots) {
  score_list<PlainTerms>(row, codes, list, n, Centring{1.0f, nullptr}, dim, dots);
}

void score_listed(const float* row, const float* codes, const int32_t* list, int n, Centring centring, int64_t dim,
                  int l2, double* scores) {
  if (l2) return score_list<CentredTerms<true>>(row, codes, list, n, centring, dim, scores);
  score_list<CentredTerms<false>>(row, codes, list, n, centring, dim, scores);
}

}  // namespace
}  // namespace vq_cpu
