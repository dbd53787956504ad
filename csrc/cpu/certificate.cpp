#include "cpu/certificate.h"

#include <math.h>

#include "cpu/codebook.h"
#include "cpu/narrow.h"

namespace vq_cpu {
namespace {

double sum_error(double n) {
  const double u = 0x1p-24;
  return n * u < 0.005 ? n * u / (1.0 - n * u) : INFINITY;
}

double contract_reach(const Codebook& codebook, double norm, double scale = 1.0) {
  return 1.01 * (norm + 2.0 * codebook.centre_norm * scale);
}

}  // namespace

// The score that decides in the end is a pair (backends/base.py), off by at most gamma_{2d}^2, u = 2^-53, of
// |e|^2/2 + |x||e| <= (|x| + |e|)^2 (Ogita, Rump and Oishi 2005), on values that were not centred. A leader by
// less than that in real arithmetic need not lead there, and all backends are to agree.
double Certificate::contract_error(int64_t dim) const {
  const double n = 2.0 * double(dim) + 4.0;
  return scale_ * 1.1 * n * n * 0x1p-106;
}

// Write x' and e' for row and code minus the centre c, x^ and e^ for their float32 roundings, u = 2^-24
// and b = |e'|^2/2. The real score is t = x'.e' - b (minus a term common to all codes). Computed is
// t^ = fl(-b^ + sum_d x^_d e^_d):
//   rounding of the sums, any order (Higham 2002, section 3.1)  gamma_{d+1} (|x^| |e^| + b^)
//   x^ for x' and e^ for e'                                     2 u (1 + u) |x^| |e^|
//   b^ for b                                                    u b
//   subnormal products and sums                                 (d + 2) 2^-149
// with sum_d |x^_d| |e^_d| <= |x^| |e^| (Cauchy-Schwarz). In all less than
//   gamma (|x^| max|e^| + max b) + offset,   gamma = n u / (1 - n u),  n = d + 8,
// where the four roundings to spare, the factor 1.01 and the offsets cover the evaluation of |x^| (its
// sum of squares is computed in float32) and of this formula in float32, and the 2^-53 terms of the
// float64 parts. The index is certain if the best score leads by more than twice the bound.
Bound Certificate::sweep(const Codebook& codebook) const {
  const double n = double(codebook.dim) + 8.0;
  Bound result;
  result.gamma = float(scale_ * 1.01 * sum_error(n));
  result.norm = float(1.01 * codebook.largest_norm);
  result.bias = float(codebook.largest_bias);
  result.error = 0.0f;
  result.norm_offset = float(sqrt(n) * 0x1p-70);
  result.offset = float(scale_ * n * 0x1p-140);
  result.contract = float(contract_error(codebook.dim));
  result.contract_reach = float(contract_reach(codebook, codebook.largest_norm, codebook.centring.scale));
  return result;
}

// The same without a centre, and with b summed in float32 as well: D roundings more for it, as many as gamma holds
// already, hence twice b. Squares that underflow are covered by the offset of |e| and by `offset`.
Bound Certificate::direct(int64_t dim, float largest) const {
  const double n = double(dim) + 8.0;
  Bound result;
  result.gamma = float(scale_ * 1.01 * sum_error(n));
  result.norm_offset = float(sqrt(n) * 0x1p-70);
  result.norm = float(1.01 * (sqrt(double(largest)) + result.norm_offset));
  result.bias = largest;
  result.error = 0.0f;
  result.offset = float(scale_ * n * 0x1p-140);
  result.contract = float(contract_error(dim));
  result.contract_reach = result.norm;
  return result;
}

// In the matrix unit x^ and e^ are rounded once more, to bfloat16 x~ and e~. With f = x^ - x~ and
// g = e^ - e~ (computed exactly and summed up in their norms, which is less than half the worst case):
//   |x^.e^ - x~.e~| <= |f| |e^| + |x~| |g|,   |x~| <= |x^| + |f|.
// Its products are exact; for its order of summation nothing is assumed, not even rounding to nearest:
// twice the terms stand for truncation. It flushes subnormal products and sums: 2^-126 for each
// operation; operands that it would flush were rounded to zero and are part of f and g.
Bound Certificate::matrix(const Codebook& codebook) const {
  const double n = 2.0 * double(codebook.matrix_steps * kMatrixDepth) + 16.0;
  Bound result;
  result.gamma = float(scale_ * 1.01 * sum_error(n));
  result.norm_offset = float(sqrt(n) * 0x1p-70);
  result.norm = float(scale_ * 1.01 * (sqrt(double(codebook.matrix_norm2)) + result.norm_offset));
  result.bias = codebook.matrix_largest_bias;
  result.error = float(scale_ * 1.01 * (sqrt(double(codebook.matrix_error2)) + result.norm_offset));
  result.offset = float(scale_ * n * 0x1p-120);
  result.contract = float(contract_error(codebook.dim));
  result.contract_reach =
      float(contract_reach(codebook, sqrt(double(codebook.matrix_norm2)), codebook.centring.scale));
  return result;
}

// Rows x' = s q + r and codes e' = t p + g; the sum q.p is exact in int8 and int16, and
//   |x'.e' - s t (q.p)| = |x'.g + r.(t p)| <= |x'| |g| + |r| |t p|.
// Rounding (u = 2^-24): the conversion of q.p, its products with t and s, the sum with the rest and what the
// rest is made of are less than 16 u of |x'||t p|, |x'||g| and |e'|^2/2; the last was summed in float32, D more.
// A bfloat16 sum has D + 2 roundings, doubled for truncation. Subnormals that are lost are far below the
// offset, since ordinary codes have lengths of 1 to 2.
// The contract's own score: (|x| + |e|)^2 <= 3 (|x'|^2 + |e'|^2 + 4 |c|^2), once for each of two codes, of which |e'|^2
// is part of `half` (cosine: |x||e|, part of `kept` and `lost`).
// Float32 and float64 scores: sum_d (x'_d - e'_d/2) e'_d with x' and e' rounded to it, gamma_{d+8} (|x'||e'| + |e'|^2/2).
NarrowFactors Certificate::narrow(int64_t dim, bool rounded) const {
  const double sums = rounded ? double(dim) + 2.0 : 0.0;
  NarrowFactors result;
  result.lost = float(scale_ * (1.0 + 0x1p-12));
  result.kept = float(scale_ * 1.01 * sum_error(2.0 * sums + 16.0));
  result.half = float(scale_ * (double(dim) + 32.0) * 0x1p-24);
  result.offset = float(scale_ * 0x1p-90);
  result.slack = 6.1 * contract_error(dim);
  result.quick_score = 1.01 * scale_ * sum_error(double(dim) + 12.0);
  result.score = 1.01 * scale_ * (double(dim) + 12.0) * 0x1p-53;
  result.contract = 3.1 * contract_error(dim);
  return result;
}

// S = |x - e|^2 as a sum of fl(x_d - e_d)^2: every term within 2 u of its own, D roundings of sums of what is not
// negative: |S^ - S| <= gamma_{D+2} S + eta, eta = 2 D 2^-149 for squares that underflow and for what a power of two below 1
// took from x and e, 2^-149 of a difference, twice that times |x_d - e_d| of its square. Codes a and b are in doubt only if
// S^_b <= (1 + gamma) / (1 - gamma) S^_a + 3 eta, and the contract's own score adds 4 e (|x| + |e|)^2 of
// contract_error e with |e| <= |x| + sqrt(S): 32 e |x|^2, and 8 e S among the six roundings to spare.
float Certificate::difference_factor(int64_t dim) const {
  return float(1.0 + 2.02 * scale_ * sum_error(double(dim) + 8.0));
}

float Certificate::difference_slack(int64_t dim, float norm2) const {
  return float(scale_ * 6.1 * double(dim) * 0x1p-149 + 33.0 * contract_error(dim) * double(norm2));
}

// sum_d (e_d/2 - x_d) e_d on the values as given, in float64 and any order: gamma_{d+4} (|e|^2/2 + |x| |e|).
// Neither products nor squares of float32 values overflow or underflow there.
double Certificate::float64(int64_t dim) const {
  return 1.01 * scale_ * (double(dim) + 8.0) * 0x1p-53 + contract_error(dim);
}

double Certificate::float64(int64_t dim, double x_norm, double e_norm) const {
  return float64(dim) * (0.5 * e_norm * e_norm + x_norm * e_norm);
}

// Every sum of the contract's score is at most T (1 + 2^-53)^{2d} with T = |e|^2/2 + |x||e|, its rounding error a
// multiple of 2^unit and at most 2^-53 of it. The errors of all 2 d add up without rounding if they stay below 2^{53 + unit}.
// float64() is then below 2 (1 + 8/d) 2^{51 + unit}: scores that it leaves open differ by less than 2^{58 + unit}.
bool Certificate::score_is_exact(int64_t dim, double x_norm, double e_norm, int unit) const {
  const double terms = 0.5 * e_norm * e_norm + x_norm * e_norm;
  return scale_ * 2.1 * double(dim) * terms < ldexp(1.0, 106 + unit);
}

bool Certificate::ties_fit_32_bits(int64_t dim, double x_norm, double e_norm, int unit) const {
  return 4.1 * float64(dim, x_norm, e_norm) < ldexp(1.0, 31 + unit);
}

// |e| <= |e'| + |c| and |x| <= |x'| + |c|, of values that are not scaled.
double Certificate::matrix_length(const Codebook& codebook, float norm2) {
  const double lost = sqrt(double(codebook.dim) + 8.0) * 0x1p-70;
  return (1.01 * sqrt(double(norm2)) + lost) / double(codebook.centring.scale) + codebook.centre_norm;
}

double Certificate::matrix_candidate(const Codebook& codebook, float norm2) const {
  return float64(codebook.dim, matrix_length(codebook, norm2), matrix_length(codebook, codebook.matrix_norm2));
}

}  // namespace vq_cpu
