// What certifies a result. docs/certificate.md derives every bound; that of scaled 16-bit parts is in scaled_rows.cuh,
// here are the float32 kernels' own, the factors of both, and the decision.
//
// best and second are the two smallest computed scores of a row. If each computed score is within `error` of
// the real one, second - best > 2 error leaves one candidate, the nearest code. Everything else, NaN, infinity
// and overflow included, fails the comparison as written and goes to the next pass.
#pragma once

#include "scaled_rows.cuh"

namespace vq_cuda {

constexpr int kChunk = 64;  // dimensions of a stage; where sums are chunked, tensor cores add up no more

// Of every score of the float32 kernels: error = scale (product |x'||e'| + bias |h| + contract ...) + floor
struct ErrorFactors {
  float scale, product, bias, contract, norm, norm_floor, floor;
};

// Order-reversing on the non-negative floats, and its own inverse.
__device__ inline float reversed(float v) {
  return __uint_as_float(0x7f800000u - __float_as_uint(v));
}

// Centre and exponent are the same in all.
template <int THREADS>
__device__ inline Extremes reduce_extremes(const Extremes& e, float* scratch) {
  Extremes top = e;
  top.largest = block_max<THREADS>(e.largest, scratch);
  top.smallest = reversed(block_max<THREADS>(reversed(e.smallest), scratch));
  top.residual = block_max<THREADS>(e.residual, scratch);
  top.low_part = block_max<THREADS>(e.low_part, scratch);
  top.excluded = reversed(block_max<THREADS>(reversed(e.excluded), scratch));
  return top;
}

// The same of what other blocks have written; centre and exponent stay those of `own`.
template <int THREADS>
__device__ inline Extremes reduce_blocks(const Extremes& own, const Extremes* blocks, int count, float* scratch) {
  Extremes top = own;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const Extremes* e = blocks + i;
    top.largest = fmaxf(top.largest, __ldcg(&e->largest));
    top.smallest = fminf(top.smallest, __ldcg(&e->smallest));
    top.residual = fmaxf(top.residual, __ldcg(&e->residual));
    top.low_part = fmaxf(top.low_part, __ldcg(&e->low_part));
    top.excluded = fminf(top.excluded, __ldcg(&e->excluded));
  }
  return reduce_extremes<THREADS>(top, scratch);
}

// An upper bound of a norm from its float32 sum of squares, with underflowed squares allowed for.
__device__ inline float norm_bound(const ErrorFactors& f, float squares) {
  return fmaf(sqrtf(squares), f.norm, f.norm_floor);
}

// Bound on |computed score - real score| of a row of the float32 kernels, |x'| at most x_norm, for every code that
// could win.
//
// A code of |e'| > 2 |x'| + |innermost e'| is farther from x than the innermost code. Half as much again leaves
// more room between their scores than both errors can fill: such codes need no bound. The contract's own score
// (resolve.cu), of values that are not centred, sees that room only where it is not tiny beside the centre.
__device__ inline float float32_error(const ErrorFactors& f, const Extremes& e, float x_norm) {
  const float reach = fmaxf(1.5f * (2.0f * x_norm + e.smallest), 0x1p-30f * e.centre);
  const float code = fminf(e.largest, reach);
  const float product = 4.0f * x_norm * code;  // infinite before any partial sum can overflow
  const float contract_reach = x_norm + code + 2.0f * e.centre;
  const float sum =
      f.product * product + f.bias * (0.5f * code * code) + f.contract * contract_reach * contract_reach;
  return fmaf(sum, f.scale, f.floor);
}

// `packing` bounds the relative change of a score whose low bits hold a column, and its rounding; 0 for whole float32
// scores. A code whose products overflow can have the score -infinity: nothing is certain then.
__device__ inline bool certain(float score, float second, float error, float packing) {
  const float upper = score + packing * fabsf(score);
  const float lower = second < kInfinity ? second - packing * fabsf(second) : second;
  return lower - upper > 2.002f * error && score > -kInfinity;
}

// --- host side ---------------------------------------------------------------------------------------

// n u / (1 - n u). Where n u passes 1/16 the case for outliers (docs/certificate.md) no longer holds, so
// that no row may be certain.
inline float sum_error(int n, float u) {
  const float error = static_cast<float>(n) * u;
  return error <= 0x1p-4f ? error / (1.0f - error) : kInfinity;
}

// gamma_{2 D}^2, u = 2^-53, of a sum of 2 D exact products (Ogita, Rump and Oishi 2005).
inline float contract_error(int dim) {
  return 1.1f * static_cast<float>(2 * dim + 4) * static_cast<float>(2 * dim + 4) * 0x1p-106f;
}

inline ErrorFactors error_factors(int dim, double bound_scale) {
  const float u = 0x1p-24f;
  ErrorFactors f{};
  f.product = 0.25f * sum_error(dim + 8, u);  // float32_error multiplies the norms by 4
  f.bias = sum_error(dim + 4, u);  // search_small starts its sum from the bias
  f.contract = contract_error(dim);
  f.scale = 1.01f * static_cast<float>(bound_scale);  // 1.01 for the rounding of the bound itself
  f.norm = 1.0f + static_cast<float>(dim + 8) * u;
  f.norm_floor = sqrtf(static_cast<float>(dim)) * 0x1p-73f;
  f.floor = static_cast<float>(dim) * 0x1p-120f;
  return f;
}

// Error of the tensor cores' sum of so many products relative to the sum of their absolute values: blocks of four or
// more, all aligned to the largest and truncated (vq_kernels/backends/triton/certificate.py).
inline float accumulation_error(int64_t products) {
  return 0x1p-23f * static_cast<float>(products + 2 * ceil_div(products, 4)) * (1.0f + 0x1p-10f);
}

// Relative change of a score whose low bits make room for a column.
inline float packing_error(int bits) {
  return 0x1p-23f * static_cast<float>(1 << bits);
}

// products: of parts a term. Chunked sums are of 64 dimensions, added in float32.
inline ScaledBound scaled_bound(int products, bool chunked, bool split, bool l2, int dim, int padded_dim,
                                double bound_scale) {
  const int summed = chunked && padded_dim > kChunk ? kChunk : padded_dim;
  // 1.01: the accumulator holds the products with a second part as well when the others begin.
  const float main = 1.01f * (accumulation_error(summed) + static_cast<float>(ceil_div(padded_dim, summed)) * 0x1p-24f);
  return ScaledBound{split,
                     l2,
                     main,
                     1.01f * accumulation_error(static_cast<int64_t>(products - 1) * summed),
                     contract_error(dim),
                     1.0f + 0x1p-10f,
                     static_cast<float>(bound_scale)};
}

}  // namespace vq_cuda
