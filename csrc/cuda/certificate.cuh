// Every error bound of the CUDA searches: what certifies a result. docs/certificate.md derives them.
//
// best and second are the two smallest computed scores of a row. If each computed score is within `error` of
// the real one, second - best > 2 error leaves one candidate, the nearest code. Everything else, NaN, infinity
// and overflow included, fails the comparison as written and goes to the second pass (resolve.cu).
#pragma once

#include "common.cuh"

namespace vq_cuda {

constexpr int kChunk = 64;  // dimensions that tensor cores add up before float32 does

// What prepare.cu leaves behind of a group of codes: the largest norms, and the smallest.
struct Extent {
  float code;  // |e'|
  float low;  // |low part of e'|, 0 where e' is not split
  float residual;  // |e' - high - low|, 0 where e' is not split
  float offset;  // |c - s|
  float centre;  // |c|
  float innermost;  // smallest |e'|; infinity if there is none, or for cosine
};

// Of every score: error = scale (product |x'||e'| + low (|x'||e'_low| + |x'_low||e'|) + bias |h| + split parts)
//                         + floor
struct ErrorFactors {
  float scale, product, low, bias, contract, norm, norm_floor, floor;
};

// Order-reversing on the non-negative floats, and its own inverse.
__device__ inline float reversed(float v) {
  return __uint_as_float(0x7f800000u - __float_as_uint(v));
}

template <int THREADS>
__device__ inline Extent reduce_extent(const Extent& e, float* scratch) {
  return Extent{block_max<THREADS>(e.code, scratch), block_max<THREADS>(e.low, scratch),
                block_max<THREADS>(e.residual, scratch), block_max<THREADS>(e.offset, scratch),
                block_max<THREADS>(e.centre, scratch),
                reversed(block_max<THREADS>(reversed(e.innermost), scratch))};
}

template <int THREADS>
__device__ inline Extent reduce_extents(const Extent* extents, int count, float* scratch) {
  Extent top{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, kInfinity};
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const Extent* e = extents + i;  // other blocks have written it
    top.code = fmaxf(top.code, __ldcg(&e->code));
    top.low = fmaxf(top.low, __ldcg(&e->low));
    top.residual = fmaxf(top.residual, __ldcg(&e->residual));
    top.offset = fmaxf(top.offset, __ldcg(&e->offset));
    top.centre = fmaxf(top.centre, __ldcg(&e->centre));
    top.innermost = fminf(top.innermost, __ldcg(&e->innermost));
  }
  return reduce_extent<THREADS>(top, scratch);
}

// An upper bound of a norm from its float32 sum of squares, with underflowed squares allowed for.
__device__ inline float norm_bound(const ErrorFactors& f, float squares) {
  return fmaf(sqrtf(squares), f.norm, f.norm_floor);
}

// Bound on |computed score - real score| of a row for every code that could win; docs/certificate.md
// derives it. x_norm and x_low bound the norms of x' and of its low bfloat16 part (0 where it has none).
//
// With y = |x - c|, a code of |e'| > 2 y + |innermost e'| is farther from x than the innermost code. Half
// as much again leaves more room between their scores than both errors can fill: such codes need no bound.
// The contract's own score (resolve.cu), of values that are not centred, sees that room only where it is
// not tiny beside the centre.
__device__ inline float score_error(const ErrorFactors& f, const Extent& e, float x_norm, float x_low) {
  const float reach = fmaxf(1.5f * (2.0f * (x_norm + e.offset) + e.innermost), 0x1p-30f * e.centre);
  const float code = fminf(e.code, reach);
  const float code_low = fminf(e.low, 0x1.04p-8f * code + f.norm_floor);
  const float residual = fminf(e.residual, 0x1.1p-16f * code + f.norm_floor);
  const float product = 4.0f * x_norm * code;  // infinite before any partial sum can overflow
  const float x_residual = x_low * 0x1.04p-8f;  // rounding x' - high to bfloat16
  const float split = x_norm * residual + x_residual * (code + residual) + x_low * code_low;
  const float low = x_norm * code_low + x_low * code;
  const float bias = 0.5f * code * code + e.offset * code;
  const float contract_reach = x_norm + code + 2.0f * e.centre;
  const float sum = split + f.product * product + f.low * low + f.bias * bias +
                    f.contract * contract_reach * contract_reach;
  return fmaf(sum, f.scale, f.floor);
}

// A code whose products overflow can have the score -infinity: nothing is certain then.
__device__ inline bool certain(float score, float second, float error) {
  return second - score > 2.0f * error && score > -kInfinity;
}

// --- host side ---------------------------------------------------------------------------------------

// n u / (1 - n u). Where n u passes 1/16 the case for outliers (docs/certificate.md) no longer holds, so
// that no row may be certain.
inline float sum_error(int n, float u) {
  const float error = static_cast<float>(n) * u;
  return error <= 0x1p-4f ? error / (1.0f - error) : kInfinity;
}

// docs/certificate.md derives these: u = 2^-24, and 24 * 2^-23 bounds what one m16n8k16 instruction
// loses relative to the largest partial sum: blocks of two terms or more, all aligned and truncated.
// products: of bfloat16 parts a term, on tensor cores; 0: float32 multiply-adds.
inline ErrorFactors error_factors(int products, int dim, int padded_dim, double bound_scale) {
  const float u = 0x1p-24f, instruction = 24 * 0x1p-23f;
  ErrorFactors f{};
  if (products > 0) {
    const float steps = static_cast<float>(padded_dim < kChunk ? padded_dim / 16 : kChunk / 16);
    const float chunks = static_cast<float>(ceil_div(padded_dim, kChunk));
    f.product = 1.05f * (steps * instruction + (chunks + 4) * u);
    f.low = 1.05f * static_cast<float>(products - 1) * steps * instruction;
    f.bias = 4 * u;
  } else {
    f.product = sum_error(dim + 8, u);
    f.bias = sum_error(dim + 4, u);  // search_small starts its sum from the bias
  }
  // gamma_{2 D}^2, u = 2^-53, of a sum of 2 D exact products (Ogita, Rump and Oishi 2005).
  f.contract = 1.1f * static_cast<float>(2 * dim + 4) * static_cast<float>(2 * dim + 4) * 0x1p-106f;
  f.product *= 0.25f;  // score_error multiplies the norms by 4
  f.scale = 1.01f * static_cast<float>(bound_scale);  // 1.01 for the rounding of the bound itself
  f.norm = 1.0f + static_cast<float>(dim + 8) * u;
  f.norm_floor = sqrtf(static_cast<float>(padded_dim)) * 0x1p-73f;
  f.floor = static_cast<float>(padded_dim) * 0x1p-120f;
  return f;
}

}  // namespace vq_cuda
