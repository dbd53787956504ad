// The search kernels' common part: arguments, and what a thread keeps while it walks over the codes.
//
// Scores. With a centre c of the codebook (any vector; here a mean of some codes), e' = e - c, and
// x' = x - o where o is c or 0, the score
//
//     l2:      h_j - x'.e'_j   with  h_j = |e'_j|^2 / 2 + (c - o).e'_j
//     cosine:  h_j - x .e_j    with  h_j = 0,  c = o = 0
//
// differs from the score of the contract by a number that depends on the row alone. Subtracting a
// centre makes |e'|, and |x'| where o = c, small under a common offset, and with them the bound.
// prepare.cu computes c, e' and h in float64. Tensor cores take e' times a power of two s as one or two 16-bit parts,
// and rows times powers of two of their own (scaled_rows.cuh).
//
// Cascade. Where an exact score takes more than one product, a first pass takes one over all rows; the rows whose
// nearest code it does not prove are listed, and a second pass takes all products for them. How many they are only
// the device knows: its blocks share out what there is.
//
// Few rows. If there are fewer blocks of rows than the GPU can hold, several blocks share the codes of
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

// Rows whose nearest code is not proven yet, in any order; their best code so far is in the results.
struct OpenList {
  int32_t* rows;  // [N]; null where there is no list
  unsigned* count;
};

// Sums of non-negative floats that do not depend on their order: integers by exponent (emit.cuh).
constexpr int kSquareSums = 34;

struct SearchArgs {
  RowSource x;
  int64_t rows;
  int row_blocks;  // blocks that the rows are divided into, at least 1
  int dim, codes;
  bool lanes_over_rows;
  const void* codebook;
  bool codebook_is_float;  // else x's dtype
  bool cosine;
  bool certify;  // list ambiguous rows
  // prepared
  const uint16_t* high;  // [padded codes, padded_dim], negated
  const uint16_t* low;
  const float* bias;  // [padded codes], kExcluded or, for float32, infinity where a code is not to win
  const uint8_t* usable;  // [K] 0 for non-finite codes and copies of earlier ones
  const Extremes* extremes;
  int padded_codes, padded_dim;
  ErrorFactors factors;
  ScaledBound bound;
  float packing;
  // blocks that share the codes of a block of rows
  int splits, split_codes;
  Best* partial;  // [units, rows of a block]
  unsigned* split_tickets;  // [blocks of rows]
  // if rows are to be certified
  OpenList from;  // the rows to search, if not all
  OpenList to;
  unsigned long long* open_squares;  // [kSquareSums] squared errors of rows that were listed
  int group_rows;  // of resolve.cu, and its
  RescoreBest* pieces;  // [blocks, kMostGroupRows]: of pieces of the codes
  unsigned* tickets;  // [blocks]
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
  __device__ void offer(float s, int j) {
    second = fminf(second, fmaxf(s, score));
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

// How the codes of blocks of rows are divided, so that the last of the waves in which `places` blocks run at a time is
// not mostly empty: a wave takes as long as the tiles of a piece, and about kFixedTiles for rows read and results
// merged. A piece has at least two tiles; beyond one wave there are at most four, for each keeps 12 bytes a row.
struct Division {
  unsigned pieces, piece_tiles;
};
__host__ __device__ inline Division divide_codes(unsigned row_blocks, unsigned tiles, unsigned places) {
  constexpr unsigned kFixedTiles = 4, kMostPieces = 4;
  const unsigned most = tiles / 2, fill = places / row_blocks < most ? places / row_blocks : most;
  unsigned best_tiles = tiles;
  uint64_t best_time = UINT64_MAX;
  for (unsigned i = 1; i <= kMostPieces + 1; ++i) {
    const unsigned pieces = i <= kMostPieces ? i : fill;
    if (pieces == 0 || (pieces > 1 && pieces > most)) continue;
    const unsigned piece_tiles = (tiles + pieces - 1) / pieces, waves = (row_blocks * pieces + places - 1) / places;
    const uint64_t time = static_cast<uint64_t>(waves) * (piece_tiles + kFixedTiles);
    if (time >= best_time) continue;
    best_time = time;
    best_tiles = piece_tiles;
  }
  return Division{(tiles + best_tiles - 1) / best_tiles, best_tiles};
}

// --- launchers, one for each kernel ------------------------------------------------------------------

enum Epilogue : int {
  kWholeScores,  // the two smallest scores as they are
  kPackedScores,  // the two smallest, the column in their low bits (packed_best.cuh)
  kPackedBest  // the smallest alone
};

// One pass over rows and codes.
struct SearchPass {
  int products;  // of parts a term, on tensor cores
  Epilogue epilogue;
  bool bf16;  // the parts' dtype, else float16
  bool deep;  // D above kChunk
  bool chunked;  // tensor cores add up 64 dimensions, float32 the rest
  bool streamed;  // the rows do not fit into shared memory
  int row_tiles;  // 16-row tiles a warp
  int block_rows;
  int resident;  // blocks on a multiprocessor
  int64_t shared_bytes;
};

struct SearchPlan {
  enum Method { kSmall, kTile, kMatrix } method;
  SearchPass first;
  SearchPass listed;  // over the rows that the first leaves open, with `cascade`
  bool cascade;
  bool split;  // parts of scaled numbers, else the operands' own 16 bits
  bool centred_rows;
  int listed_blocks;  // of its grid
  int splits, split_codes;
  bool certify;
  int group_rows;  // of resolve.cu
  int resolve_blocks;
};

struct PrepareArgs {
  const void* codebook;
  int dim, codes, padded_codes, padded_dim;
  bool centre_codes, rows_are_centred;
  bool cosine;
  bool split, bf16;  // the parts: of scaled numbers; bfloat16, else float16
  uint16_t* high;  // null: none
  uint16_t* low;
  float* bias;
  uint8_t* usable;
  unsigned* table;  // [table_size], a power of two and at least 2 K, for exact results; else null
  unsigned table_size;
  float* centre;
  Extremes* block_extremes;  // [tiles of codes] at least as many as blocks
  Extremes* extremes;
  unsigned* counters;  // to be cleared: tickets, numbers of open rows, sums
  int64_t counter_count;
  unsigned* last_ticket;
  void* codebook_copy;  // or null
  StatisticsArgs statistics;
};

cudaError_t launch_prepare(const PrepareArgs& a, int codebook_dtype, const VqCudaStream& stream);
cudaError_t launch_search_small(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream);
cudaError_t launch_search_tile(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream);
// search_mma.cuh for one dtype of parts: the kernel that a pass asks for
using SearchKernel = void (*)(SearchArgs);
SearchKernel search_mma_half(const SearchPass& p);
SearchKernel search_mma_half_parts(const SearchPass& p);
SearchKernel search_mma_bf16(const SearchPass& p);
// plan.cu
cudaError_t make_plan(const VqRows& x, const VqCodes& codebook, int precision, int device, SearchPlan* plan);
// Of the first pass, and of the one over the rows that it leaves open.
cudaError_t launch_search(const SearchArgs& a, const SearchPlan& plan, const VqCudaStream& stream);
cudaError_t launch_listed(const SearchArgs& a, const SearchPlan& plan, const VqCudaStream& stream);
// resolve.cu; group_rows and resolve_blocks of a plan, of which there are enough to fill the device
cudaError_t plan_resolve(int x_dtype, int64_t dim, int processors, SearchPlan* plan);
cudaError_t launch_resolve(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream);
// statistics.cu
cudaError_t launch_sums(const void* x, int dtype, const RowMap& map, int64_t rows, int64_t dim,
                        bool lanes_over_rows, const StatisticsArgs& statistics, const VqCudaStream& stream);

inline int64_t search_blocks(const SearchArgs& a, const SearchPlan& p) {
  return static_cast<int64_t>(a.row_blocks) * p.splits;
}

}  // namespace vq_cuda
