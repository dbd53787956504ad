// The search kernels' common part: arguments, the error bound that certifies a result, and what a
// thread keeps while it walks over the codes.
//
// Scores. With a centre c of the codebook (any vector; here a mean of some codes), e' = e - c, and
// x' = x - s where s is c or 0, the score
//
//     l2:      h_j - x'.e'_j   with  h_j = |e'_j|^2 / 2 + (c - s).e'_j
//     cosine:  h_j - x .e_j    with  h_j = 0,  c = s = 0
//
// differs from the score of the contract by a number that depends on the row alone. Subtracting a
// centre makes |e'|, and |x'| where s = c, small under a common offset, and with them the bound.
// prepare.cu computes c, e' and h in float64.
//
// Certificate. best and second are the two smallest computed scores of a row. If each computed score
// is within `error` of the real one, second - best > 2 error leaves one candidate, the nearest code.
// Everything else, NaN, infinity and overflow included, fails the comparison as written and is scored
// again (rescore.cuh).
#pragma once

#include "common.cuh"

namespace vq_cuda {

constexpr int kThreads = 128;  // of every search kernel
constexpr int kWarps = kThreads / kWarp;
constexpr int kTileCodes = 64;  // codes a block takes at a time; the prepared arrays are padded to it
constexpr int kSmallBlockRows = 2 * kThreads;  // rows of a block of search_small.cu
constexpr int kTileBlockRows = 64;  // and of search_tile.cu

// State of a row of the block, in shared memory.
enum RowFlag : int { kCertain = 0, kAmbiguous = 1, kMasked = 2, kNonfinite = 4, kOutside = 8 };

// What prepare.cu leaves behind: the largest norms over a group of codes.
struct Extent {
  float code;  // |e'|
  float low;  // |low part of e'|, 0 where e' is not split
  float residual;  // |e' - high - low|, 0 where e' is not split
  float offset;  // |c - s|
};

// error = all (product |x'||e'| + low (|x'||e'_low| + |x'_low||e'|) + bias |h| + split parts) + floor
struct ErrorFactors {
  float all, product, low, bias, norm, norm_floor, floor;
};

struct StatisticsArgs {
  int32_t* slots;  // [N] code of each row that counts, else -1
  int64_t* counts;  // [K]; null: no statistics
  float* sums;  // [K, D]
  unsigned* largest;  // [K] bits of the largest finite |x| of the code's rows
  unsigned* done;  // [K] rows added so far
  unsigned long long* accumulators;  // [K, D] int64 fixed point
};

struct SearchArgs {
  const void* x;
  RowMap x_map;
  int64_t rows;
  int dim, codes;
  bool lanes_over_rows;
  const void* codebook;
  bool codebook_is_float;  // else x's dtype
  bool cosine;
  bool certify;  // score ambiguous rows again
  bool shift_rows;
  // prepared
  const __nv_bfloat16* high;  // [padded codes, padded_dim]
  const __nv_bfloat16* low;
  const float* bias;  // [padded codes], infinity for non-finite codes and padding
  const float* centre;  // [D]
  const Extent* extents;  // [extent_count]
  int extent_count;
  int padded_codes, padded_dim;
  ErrorFactors factors;
  // results
  int64_t* indices;
  // the fused step; mse is null for the search alone (out may be null: it may be empty)
  void* out;
  RowMap out_map;
  const uint8_t* mask;
  double* block_squares;  // [blocks]
  int64_t* block_rows;  // [blocks]
  unsigned* ticket;
  float* mse;
  int64_t* valid_rows;
  StatisticsArgs statistics;
};

// --- the running best ------------------------------------------------------------------------------

struct Best {
  float score = kInfinity;
  float second = kInfinity;
  int index = 0;

  // NaN is never better and leaves second = best, which is ambiguous.
  template <bool CERTIFY>
  __device__ void offer(float s, int j) {
    if (CERTIFY) second = fminf(second, fmaxf(s, score));
    index = s < score ? j : index;
    score = fminf(s, score);
  }

  // Over lanes whose numbers differ in the bits of `step`: lowest score, then lowest index.
  template <bool CERTIFY>
  __device__ void merge_lanes(int step) {
    const float other = __shfl_xor_sync(kAllLanes, score, step);
    const int other_index = __shfl_xor_sync(kAllLanes, index, step);
    if (CERTIFY) {
      const float other_second = __shfl_xor_sync(kAllLanes, second, step);
      second = fminf(fminf(second, other_second), fmaxf(score, other));
    }
    if (other < score || (other == score && other_index < index)) index = other_index;
    score = fminf(score, other);
  }
};

// --- the bound -------------------------------------------------------------------------------------

template <int THREADS>
__device__ inline Extent reduce_extents(const SearchArgs& a, float* scratch) {
  Extent top{0.0f, 0.0f, 0.0f, 0.0f};
  for (int i = threadIdx.x; i < a.extent_count; i += THREADS) {
    const Extent e = a.extents[i];
    top.code = fmaxf(top.code, e.code);
    top.low = fmaxf(top.low, e.low);
    top.residual = fmaxf(top.residual, e.residual);
    top.offset = fmaxf(top.offset, e.offset);
  }
  return Extent{block_max<THREADS>(top.code, scratch), block_max<THREADS>(top.low, scratch),
                block_max<THREADS>(top.residual, scratch), block_max<THREADS>(top.offset, scratch)};
}

// An upper bound of a norm from its float32 sum of squares, with underflowed squares allowed for.
__device__ inline float norm_bound(const SearchArgs& a, float squares) {
  return fmaf(sqrtf(squares), a.factors.norm, a.factors.norm_floor);
}

// Bound on |computed score - real score| of a row for every code; docs/certificate.md derives it.
// x_norm and x_low bound the norms of x' and of its low bfloat16 part (0 where it has none).
__device__ inline float score_error(const SearchArgs& a, const Extent& e, float x_norm, float x_low) {
  const float product = 4.0f * x_norm * e.code;  // infinite before any partial sum can overflow
  const float x_residual = x_low * 0x1.04p-8f;  // rounding x' - high to bfloat16
  const float split = x_norm * e.residual + x_residual * (e.code + e.residual) + x_low * e.low;
  const float low = x_norm * e.low + x_low * e.code;
  const float bias = 0.5f * e.code * e.code + e.offset * e.code;
  const float all = x_norm + e.code + e.offset;
  const float sum = split + a.factors.product * product + a.factors.low * low + a.factors.bias * bias +
                    0x1p-96f * all * all;  // the last: rounding of the contract's own score
  return fmaf(sum, a.factors.all, a.factors.floor);
}

template <bool CERTIFY>
__device__ inline int certified(const Best& best, float error) {
  if (!CERTIFY) return kCertain;
  return best.second - best.score > 2.0f * error ? kCertain : kAmbiguous;
}

// --- launchers, one for each kernel ------------------------------------------------------------------

struct SearchPlan {
  enum Method { kSmall, kTile, kMatrix } method;
  int products;  // kMatrix: bfloat16 products a term
  int row_tiles;  // kMatrix: 16-row tiles a warp
  int block_rows;
  int64_t shared_bytes;  // kMatrix
};

struct PrepareArgs {
  const void* codebook;
  int dim, codes, padded_codes, padded_dim;
  bool centre_codes, shift_rows;
  bool cosine;
  __nv_bfloat16* high;  // null: not split
  __nv_bfloat16* low;
  float* bias;
  float* centre;
  Extent* extents;
  unsigned* ticket;  // null: search alone
  StatisticsArgs statistics;
};

cudaError_t launch_prepare(const PrepareArgs& a, int codebook_dtype, const VqCudaStream& stream);
cudaError_t launch_search_small(const SearchArgs& a, const SearchPlan& p, int dtype,
                                const VqCudaStream& stream);
cudaError_t launch_search_tile(const SearchArgs& a, const SearchPlan& p, int dtype,
                               const VqCudaStream& stream);
cudaError_t launch_search_mma_f32(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream);
cudaError_t launch_search_mma_bf16(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream);
cudaError_t launch_search_mma_f16(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream);
// statistics.cu
cudaError_t launch_sums(const void* x, int dtype, const RowMap& map, int64_t rows, int64_t dim,
                        bool lanes_over_rows, const StatisticsArgs& statistics, const VqCudaStream& stream);

inline int64_t search_blocks(const SearchArgs& a, const SearchPlan& p) {
  const int64_t blocks = ceil_div(a.rows, p.block_rows);
  return blocks > 0 ? blocks : 1;
}

}  // namespace vq_cuda
