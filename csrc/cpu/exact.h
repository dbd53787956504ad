// The exact score of one row with one code, term by term as in exact_body.h.
#pragma once

#include <stdint.h>

namespace vq_cpu {

struct ExactScore {
  double v, r;

  bool operator<(const ExactScore& other) const { return v < other.v || (v == other.v && r < other.r); }
};

struct ExactSum {
  double high = 0.0, low = 0.0;

  void add(double t) {
    const double s = high + t;
    const double b = s - high;
    low += (high - (s - b)) + (t - b);
    high = s;
  }
  ExactScore score() const {
    const double v = high + low;
    const double b = v - high;
    return {v, (high - (v - b)) + (low - b)};
  }
};

// The part of the score that depends on the code alone.
inline ExactSum half_square(const float* e, int64_t dim) {
  ExactSum sum;
  for (int64_t d = 0; d < dim; ++d) sum.add(0.5 * (double(e[d]) * double(e[d])));
  return sum;
}

inline ExactScore exact_score(const float* x, const float* e, int64_t dim, bool l2) {
  ExactSum sum = l2 ? half_square(e, dim) : ExactSum();
  for (int64_t d = 0; d < dim; ++d) sum.add(-double(x[d]) * double(e[d]));
  return sum.score();
}

// Of four codes at once: the additions of one wait for each other, those of several do not. halves: their sums over
// e^2 / 2, or zeros.
constexpr int kExactCodes = 4;

inline void exact_scores(const float* x, const float* const (&e)[kExactCodes], const ExactSum (&halves)[kExactCodes],
                         int64_t dim, ExactScore (&scores)[kExactCodes]) {
  double high[kExactCodes], low[kExactCodes];
  for (int c = 0; c < kExactCodes; ++c) {
    high[c] = halves[c].high;
    low[c] = halves[c].low;
  }
  const auto add = [&](const double (&t)[kExactCodes]) {
    for (int c = 0; c < kExactCodes; ++c) {
      const double s = high[c] + t[c];
      const double b = s - high[c];
      low[c] += (high[c] - (s - b)) + (t[c] - b);
      high[c] = s;
    }
  };
  double t[kExactCodes];
  for (int64_t d = 0; d < dim; ++d) {
    for (int c = 0; c < kExactCodes; ++c) t[c] = -double(x[d]) * double(e[c][d]);
    add(t);
  }
  for (int c = 0; c < kExactCodes; ++c) scores[c] = ExactSum{high[c], low[c]}.score();
}

// Whether two rows have the same scores: zeros of either sign are one value.
inline bool rows_are_equal(const float* a, const float* b, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d)
    if (a[d] != b[d]) return false;
  return true;
}

}  // namespace vq_cpu
