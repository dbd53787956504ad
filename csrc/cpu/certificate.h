// How far a computed score can be from the real one, and when that could swap two codes: every error bound
// of the CPU's searches. docs/certificate.md and certificate.cpp derive them.
#pragma once

#include <stdint.h>

namespace vq_cpu {

struct Codebook;
struct NarrowFactors;

// The bound of a row's scores with every code of a codebook, from the row's norms.
struct Bound {
  float gamma, norm, bias, error, norm_offset, offset;
  float contract, contract_reach;  // of the contract's own score, see contract_error()

  // norm2: the computed sum of squares of the packed row; error2: of what rounding it took, if it was
  // rounded. Infinite if a product or sum could overflow, or a score less twice the bound: what is infinite passes for
  // one of a code that cannot be chosen.
  float of_row(float norm2, float error2 = 0.0f) const {
    const float length = __builtin_sqrtf(norm2) + norm_offset, lost = __builtin_sqrtf(error2);
    const float products = length * norm + bias;
    if (!(products < 1e37f)) return __builtin_inff();
    const float reach = length + contract_reach;
    const float sum = gamma * products + (lost + norm_offset) * norm + (length + lost) * error + offset +
                      contract * reach * reach;
    return sum < 1e37f ? sum : __builtin_inff();
  }
};

class Certificate {
 public:
  // All bounds times `scale`: 1, or less for the tests that they are needed.
  explicit Certificate(double scale) : scale_(scale) {}

  // Of a float32 sweep, and of the matrix unit.
  Bound sweep(const Codebook& codebook) const;
  Bound matrix(const Codebook& codebook) const;
  // Of a float32 sweep over codes that are not packed; largest: their computed |e|^2.
  Bound direct(int64_t dim, float largest) const;
  // Of MatrixKernels::score; norm2: the computed sum of squares of the packed row.
  double matrix_candidate(const Codebook& codebook, float norm2) const;
  // An upper bound of the length of a row or code from its computed sum of squares as packed for the matrix unit.
  static double matrix_length(const Codebook& codebook, float norm2);
  // Of an int8, int16 or bfloat16 sweep; rounded: its sums of products are.
  NarrowFactors narrow(int64_t dim, bool rounded) const;
  // Of Kernels::sweep_differences: a code whose square is above factor * least + slack is not the nearest.
  float difference_factor(int64_t dim) const;
  float difference_slack(int64_t dim, float norm2) const;  // norm2: the computed sum of squares of the row
  // Of Kernels::score_rows.
  double float64(int64_t dim, double x_norm, double e_norm) const;
  double float64(int64_t dim) const;  // the same, of |e|^2 / 2 + |x||e|
  // Whether the contract's score of a row and a code is the real one, of terms that are multiples of 2^unit.
  bool score_is_exact(int64_t dim, double x_norm, double e_norm, int unit) const;
  // Whether scores that float64 leaves open then differ by less than 2^{31 + unit}; by less than 2^{63 + unit} they do.
  bool ties_fit_32_bits(int64_t dim, double x_norm, double e_norm, int unit) const;

 private:
  double contract_error(int64_t dim) const;

  double scale_;
};

}  // namespace vq_cpu
