// One row scored again, by the whole block: the nearest code by the contract's own score.
//
// A float32 pass in direct form, whose relative error is small whatever the offset, rules codes out;
// the few that are left are summed in float64 without error (Ogita, Rump, Oishi 2005, "Sum2") and
// compared as pairs (v, r), then by index.
#pragma once

#include "search.cuh"

namespace vq_cuda {

struct ExactScore {
  double v, r;
};

__device__ inline void add_exactly(double& hi, double& lo, double t) {
  const double s = __dadd_rn(hi, t);
  const double b = __dsub_rn(s, hi);
  lo = __dadd_rn(lo, __dadd_rn(__dsub_rn(hi, __dsub_rn(s, b)), __dsub_rn(t, b)));
  hi = s;
}

// sum e_d^2 / 2 - sum x_d e_d in this order (cosine: the second sum alone). Infinity for a non-finite code.
template <typename E>
__device__ ExactScore exact_score(const float* x, const E* code, int dim, bool cosine) {
  double hi = 0.0, lo = 0.0;
  bool finite = true;
  for (int d = 0; d < dim; ++d) {
    const float e = to_float(code[d]);
    finite = finite && is_finite(e);
    if (!cosine) add_exactly(hi, lo, __dmul_rn(0.5, __dmul_rn(e, e)));
  }
  if (!finite) return ExactScore{static_cast<double>(kInfinity), static_cast<double>(kInfinity)};
  for (int d = 0; d < dim; ++d) add_exactly(hi, lo, -__dmul_rn(x[d], to_float(code[d])));
  const double v = __dadd_rn(hi, lo);
  const double b = __dsub_rn(v, hi);
  return ExactScore{v, __dadd_rn(__dsub_rn(hi, __dsub_rn(v, b)), __dsub_rn(lo, b))};
}

struct Interval {
  float lower, upper;
};

// Bounds of |x - e|^2 (cosine: of -x.e) from float32 arithmetic. Every term of the first is positive,
// so n = D + 8 roundings bound its relative error; NaN and overflow leave the code in the race. The
// error is relative to computed sums: n u / (1 - n u) of what is at most 1 / (1 - n u) as large. The score that
// decides has an error of its own, `contract` times the sum of its absolute terms, twice that here; by
// |e| <= |x| + |x - e| it is within 5 |x|^2 + 4 |x - e|^2.
template <typename E>
__device__ Interval score_interval(const float* x, const E* code, int dim, bool cosine, float x_squares,
                                   float contract) {
  const float roundings = static_cast<float>(dim + 8) * 0x1p-24f;
  const float relative = roundings / fmaxf(1.0f - 2.0f * roundings, 0.0f);
  const float underflow = static_cast<float>(dim) * 0x1p-125f;
  float sum = 0.0f, size = 0.0f;
  for (int d = 0; d < dim; ++d) {
    const float e = to_float(code[d]);
    if (cosine) {
      sum = fmaf(-x[d], e, sum);
      size = fmaf(fabsf(x[d]), fabsf(e), size);
    } else {
      const float difference = x[d] - e;
      sum = fmaf(difference, difference, sum);
    }
  }
  if (!cosine) {
    sum = fminf(sum, 0x1.fffffep127f);  // an infinite sum says no more than "at least that"
    size = sum;
  }
  const float terms = cosine ? size : 5.0f * x_squares + 4.0f * size;
  const float error = fmaf(size, relative, underflow) + 1.01f * contract * terms;
  return Interval{sum - error, sum + error};
}

struct RescoreBest {
  ExactScore score{static_cast<double>(kInfinity), static_cast<double>(kInfinity)};
  int index = 0x7fffffff;

  __device__ void offer(const ExactScore& s, int j) {
    const bool less = s.v < score.v || (s.v == score.v && s.r < score.r);
    const bool equal = s.v == score.v && s.r == score.r;
    if (less || (equal && j < index)) {
      score = s;
      index = j;
    }
  }
};

template <typename E>
__device__ RescoreBest rescore_codes(const SearchArgs& a, const float* x, int hint) {
  const E* codebook = static_cast<const E*>(a.codebook);
  float x_squares = 0.0f;
  for (int d = 0; d < a.dim; ++d) x_squares = fmaf(x[d], x[d], x_squares);
  const float contract = a.factors.contract;
  const E* first = codebook + static_cast<int64_t>(hint) * a.dim;
  float limit = score_interval(x, first, a.dim, a.cosine, x_squares, contract).upper;
  RescoreBest best;
  for (int j = static_cast<int>(threadIdx.x); j < a.codes; j += kThreads) {
    const E* code = codebook + static_cast<int64_t>(j) * a.dim;
    const Interval bounds = score_interval(x, code, a.dim, a.cosine, x_squares, contract);
    if (bounds.lower > limit) continue;
    best.offer(exact_score(x, code, a.dim, a.cosine), j);
    limit = fminf(limit, bounds.upper);
  }
  return best;
}

struct RescoreScratch {
  ExactScore score[kWarps];
  int index[kWarps];
};

inline int64_t rescore_bytes(int64_t dim) {
  return static_cast<int64_t>(sizeof(RescoreScratch)) + dim * 4;
}

// Nearest code of the row at `x_offset`, the same for all threads of the block, all of which call.
// scratch: rescore_bytes(D) of shared memory.
template <typename X>
__device__ int rescore_row(const SearchArgs& a, int64_t x_offset, int hint, unsigned char* scratch) {
  RescoreScratch* merge = reinterpret_cast<RescoreScratch*>(scratch);
  float* x = reinterpret_cast<float*>(scratch + sizeof(RescoreScratch));
  const X* row = static_cast<const X*>(a.x) + x_offset;
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < a.dim; d += kThreads) {
    x[d] = to_float(row[d * a.x_map.strides.dim]);
  }
  __syncthreads();
  RescoreBest best = a.codebook_is_float ? rescore_codes<float>(a, x, hint) : rescore_codes<X>(a, x, hint);
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const ExactScore other{__shfl_xor_sync(kAllLanes, best.score.v, step),
                           __shfl_xor_sync(kAllLanes, best.score.r, step)};
    best.offer(other, __shfl_xor_sync(kAllLanes, best.index, step));
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x % kWarp == 0) {
    merge->score[warp] = best.score;
    merge->index[warp] = best.index;
  }
  __syncthreads();
  RescoreBest winner;
  for (int w = 0; w < kWarps; ++w) winner.offer(merge->score[w], merge->index[w]);
  return winner.score.v == static_cast<double>(kInfinity) ? 0 : winner.index;
}

}  // namespace vq_cuda
