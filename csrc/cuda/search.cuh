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
//
// Few rows. If there are fewer blocks of rows than the GPU can hold, `splits` blocks share the codes of
// a block of rows; the last of them to finish merges what they found, in the order of the codes.
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

// What prepare.cu leaves behind of a group of codes: the largest norms, and the smallest.
struct Extent {
  float code;  // |e'|
  float low;  // |low part of e'|, 0 where e' is not split
  float residual;  // |e' - high - low|, 0 where e' is not split
  float offset;  // |c - s|
  float centre;  // |c|
  float innermost;  // smallest |e'|; infinity if there is none, or for cosine
};

// error = scale (product |x'||e'| + low (|x'||e'_low| + |x'_low||e'|) + bias |h| + split parts) + floor
struct ErrorFactors {
  float scale, product, low, bias, contract, norm, norm_floor, floor;
};

struct StatisticsArgs {
  int32_t* slots;  // [N] code of each row that counts, else -1
  int64_t* counts;  // [K]; null: no statistics
  float* sums;  // [K, D]
  unsigned* largest;  // [K] bits of the largest finite |x| of the code's rows
  unsigned* done;  // [K] rows added so far
  unsigned long long* accumulators;  // [K, D] int64 fixed point
};

struct Best;

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
  // blocks that share the codes of a block of rows
  int splits, split_codes;
  Best* partial;  // [splits, rows padded to blocks]
  unsigned* split_tickets;  // [blocks of rows]
  // the fused step alone
  const uint8_t* mask;
  float loss_weight;
  double* block_squares;  // [blocks]
  int64_t* block_rows;  // [blocks]
  unsigned* ticket;
  // results; loss is null for the search alone (quantized may be null: it may be empty)
  void* quantized;
  RowMap quantized_map;
  int64_t* indices;
  float* loss;
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

  // With what another lane or block found among other codes: lowest score, then lowest index.
  __device__ void merge(float other, float other_second, int other_index) {
    second = fminf(fminf(second, other_second), fmaxf(score, other));
    if (other < score || (other == score && other_index < index)) index = other_index;
    score = fminf(score, other);
  }

  __device__ void merge_lanes(int step) {
    merge(__shfl_xor_sync(kAllLanes, score, step), __shfl_xor_sync(kAllLanes, second, step),
          __shfl_xor_sync(kAllLanes, index, step));
  }
};

// --- the bound -------------------------------------------------------------------------------------

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
__device__ inline Extent reduce_extents(const SearchArgs& a, float* scratch) {
  Extent top{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, kInfinity};
  for (int i = threadIdx.x; i < a.extent_count; i += THREADS) {
    const Extent e = a.extents[i];
    top.code = fmaxf(top.code, e.code);
    top.low = fmaxf(top.low, e.low);
    top.residual = fmaxf(top.residual, e.residual);
    top.offset = fmaxf(top.offset, e.offset);
    top.centre = fmaxf(top.centre, e.centre);
    top.innermost = fminf(top.innermost, e.innermost);
  }
  return reduce_extent<THREADS>(top, scratch);
}

// An upper bound of a norm from its float32 sum of squares, with underflowed squares allowed for.
__device__ inline float norm_bound(const SearchArgs& a, float squares) {
  return fmaf(sqrtf(squares), a.factors.norm, a.factors.norm_floor);
}

// Bound on |computed score - real score| of a row for every code that could win; docs/certificate.md
// derives it. x_norm and x_low bound the norms of x' and of its low bfloat16 part (0 where it has none).
//
// With y = |x - c|, a code of |e'| > 2 y + |innermost e'| is farther from x than the innermost code. Half
// as much again leaves more room between their scores than both errors can fill: such codes need no bound.
// The contract's own score (rescore.cuh), of values that are not centred, sees that room only where it is
// not tiny beside the centre.
__device__ inline float score_error(const SearchArgs& a, const Extent& e, float x_norm, float x_low) {
  const float reach = fmaxf(1.5f * (2.0f * (x_norm + e.offset) + e.innermost), 0x1p-30f * e.centre);
  const float code = fminf(e.code, reach);
  const float code_low = fminf(e.low, 0x1.04p-8f * code + a.factors.norm_floor);
  const float residual = fminf(e.residual, 0x1.1p-16f * code + a.factors.norm_floor);
  const float product = 4.0f * x_norm * code;  // infinite before any partial sum can overflow
  const float x_residual = x_low * 0x1.04p-8f;  // rounding x' - high to bfloat16
  const float split = x_norm * residual + x_residual * (code + residual) + x_low * code_low;
  const float low = x_norm * code_low + x_low * code;
  const float bias = 0.5f * code * code + e.offset * code;
  const float contract_reach = x_norm + code + 2.0f * e.centre;
  const float sum = split + a.factors.product * product + a.factors.low * low + a.factors.bias * bias +
                    a.factors.contract * contract_reach * contract_reach;
  return fmaf(sum, a.factors.scale, a.factors.floor);
}

// A code whose products overflow can have the score -infinity: nothing is certain then.
__device__ inline bool certain(float score, float second, float error) {
  return second - score > 2.0f * error && score > -kInfinity;
}

// --- launchers, one for each kernel ------------------------------------------------------------------

struct SearchPlan {
  enum Method { kSmall, kTile, kMatrix } method;
  int products;  // kMatrix: bfloat16 products a term
  int row_tiles;  // kMatrix: 16-row tiles a warp
  int block_rows;
  int64_t shared_bytes;  // kMatrix
  int splits, split_codes;
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
  unsigned* split_tickets;
  int64_t split_ticket_count;
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
  return (blocks > 0 ? blocks : 1) * p.splits;
}

}  // namespace vq_cuda
