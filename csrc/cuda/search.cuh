// The search kernels' common part: arguments, and what a thread keeps while it walks over the codes.
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
// Few rows. If there are fewer blocks of rows than the GPU can hold, `splits` blocks share the codes of
// a block of rows; the last of them to finish merges what they found, in the order of the codes.
#pragma once

#include "certificate.cuh"

namespace vq_cuda {

constexpr int kThreads = 128;  // of every search kernel
constexpr int kWarps = kThreads / kWarp;
constexpr int kTileCodes = 64;  // codes a block takes at a time; the prepared arrays are padded to it
constexpr int kSmallBlockRows = 2 * kThreads;  // rows of a block of search_small.cu
constexpr int kTileBlockRows = 64;  // and of search_tile.cu
constexpr int kSmallResident = 4, kTileResident = 3;  // their blocks on a multiprocessor
constexpr int kMostGroupRows = 8;  // of a group of open rows
constexpr int64_t kMostRows = (INT64_C(1) << 31) - (1 << 15);  // 32 bits hold the rows of all whole blocks
constexpr unsigned kEmptySlot = 0xffffffffu;

// State of a row of the block, in shared memory.
enum RowFlag : int { kCertain = 0, kAmbiguous = 1, kMasked = 2, kNonfinite = 4, kOutside = 8 };

struct StatisticsArgs {
  int32_t* slots;  // [N] code of each row that counts, else -1
  int64_t* counts;  // [K]; null: no statistics
  float* sums;  // [K, D]
  // What rows are summed relative to, as x - e: the codes [K, D], those of the search; null: 0.
  const void* codes;
  bool codes_are_float;  // else x's dtype
  unsigned* largest;  // [K] bits of the largest finite |x|, or |x - e|, of the code's rows
  unsigned* done;  // [K] rows added so far
  unsigned long long* accumulators;  // [K, D] int64 fixed point
};

struct Best;
struct RescoreBest;

// Groups of open rows that belong to one block of rows.
struct OpenGroups {
  unsigned first, groups;
};

// The rows that the certificate leaves open, in groups of `group_rows`, each from one block of rows.
struct OpenRows {
  int32_t* rows;  // [groups, group_rows], -1 beyond a block's last; the hints are in indices
  unsigned* groups;
  OpenGroups* of_block;  // [blocks of rows]
  double* squares;  // [groups] squared errors
  int group_rows;
  RescoreBest* partial;  // [blocks of the second pass, group_rows]: of pieces of the codes
  unsigned* tickets;  // [blocks of the second pass]
};

struct SearchArgs {
  const void* x;
  RowMap x_map;
  int64_t rows;
  int row_blocks;  // blocks that the rows are divided into, at least 1
  int dim, codes;
  bool lanes_over_rows;
  const void* codebook;
  bool codebook_is_float;  // else x's dtype
  bool cosine;
  bool certify;  // list ambiguous rows for the second pass
  bool shift_rows;
  // prepared
  const __nv_bfloat16* high;  // [padded codes, padded_dim]
  const __nv_bfloat16* low;
  const float* bias;  // [padded codes], infinity where unusable, for padding, and where it overflows
  const uint8_t* usable;  // [K] 0 for non-finite codes and copies of earlier ones
  const float* centre;  // [D]
  const Extent* extent;  // of all codes, if they are to be certified
  int padded_codes, padded_dim;
  ErrorFactors factors;
  // blocks that share the codes of a block of rows
  int splits, split_codes;
  Best* partial;  // [splits, rows padded to blocks]
  unsigned* split_tickets;  // [blocks of rows]
  OpenRows open;  // if they are to be certified
  // the fused step alone
  const uint8_t* mask;
  VqQuantizeOptions options;
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

// For other precisions no row is certified: any bound will do.
__device__ inline Extent extent_of_codes(const SearchArgs& a) {
  return a.certify ? *a.extent : Extent{};
}

// --- launchers, one for each kernel ------------------------------------------------------------------

struct SearchPlan {
  enum Method { kSmall, kTile, kMatrix } method;
  int products;  // kMatrix: bfloat16 products a term
  bool deep;  // kMatrix: D above kChunk
  bool streamed;  // kMatrix: the rows do not fit into shared memory
  int row_tiles;  // kMatrix: 16-row tiles a warp
  int block_rows;
  int resident;  // blocks on a multiprocessor
  int64_t shared_bytes;  // kMatrix
  int splits, split_codes;
  bool certify;
  int group_rows;  // of the second pass
  int resolve_blocks;
};

struct PrepareArgs {
  const void* codebook;
  int dim, codes, padded_codes, padded_dim;
  bool centre_codes, shift_rows;
  bool cosine;
  __nv_bfloat16* high;  // null: not split
  __nv_bfloat16* low;
  float* bias;
  uint8_t* usable;
  unsigned* table;  // [table_size], a power of two and at least 2 K, for exact results; else null
  unsigned table_size;
  float* centre;
  Extent* extents;  // [tiles of codes] at least as many as blocks
  Extent* extent;  // of all codes, if there is a table
  unsigned* counters;  // to be cleared: tickets, and the number of open groups
  int64_t counter_count;
  unsigned* last_ticket;
  void* codebook_copy;  // or null
  StatisticsArgs statistics;
};

cudaError_t launch_prepare(const PrepareArgs& a, int codebook_dtype, const VqCudaStream& stream);
cudaError_t launch_search_small(const SearchArgs& a, const SearchPlan& p, int dtype,
                                const VqCudaStream& stream);
cudaError_t launch_search_tile(const SearchArgs& a, const SearchPlan& p, int dtype,
                               const VqCudaStream& stream);
// search_mma.cuh for one dtype of rows: the kernel that the plan asks for
using SearchKernel = void (*)(SearchArgs);
SearchKernel search_mma_f32(const SearchPlan& p);
SearchKernel search_mma_bf16(const SearchPlan& p);
SearchKernel search_mma_f16(const SearchPlan& p);
// plan.cu
cudaError_t make_plan(const VqRows& x, const VqCodes& codebook, int precision, int device, SearchPlan* plan);
cudaError_t launch_search(const SearchArgs& a, const SearchPlan& plan, int dtype, const VqCudaStream& stream);
// resolve.cu; group_rows and resolve_blocks of a plan, of which there are enough to fill the device
cudaError_t plan_resolve(int x_dtype, int64_t dim, int processors, SearchPlan* plan);
cudaError_t launch_resolve(const SearchArgs& a, const SearchPlan& p, int dtype, const VqCudaStream& stream);
// statistics.cu
cudaError_t launch_sums(const void* x, int dtype, const RowMap& map, int64_t rows, int64_t dim,
                        bool lanes_over_rows, const StatisticsArgs& statistics, const VqCudaStream& stream);

inline int64_t search_blocks(const SearchArgs& a, const SearchPlan& p) {
  return static_cast<int64_t>(a.row_blocks) * p.splits;
}

}  // namespace vq_cuda
