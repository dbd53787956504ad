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

}  // namespace vq_cpu
