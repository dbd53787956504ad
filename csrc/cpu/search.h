// The nearest code of a block of rows: what nearest_code.cpp and vector_quantize.cpp share.
#pragma once

#include "cpu/codebook.h"
#include "cpu/kernels.h"
#include "cpu/support.h"

// Up to this many rows search_few() is the faster way to the exact result. Other precisions do not take it,
// so that a row's index does not depend on its batch there either.
constexpr int SEARCH_FEW_ROWS = 4;

inline bool rows_are_few(const VqRows* x, int precision) {
  return precision == VQ_EXACT && x->b * x->m <= SEARCH_FEW_ROWS;
}

// All rows of x. index and nonfinite as of BlockSearch::run. False if there is no memory.
bool search_few(const VqRows* x, const float* codes, int64_t k, bool l2, int threads, int64_t* index,
                uint8_t* nonfinite);

struct Search {
  const VqKernels* kernels;
  const VqTileKernels* tiles;  // null: float32 sweeps alone
  const VqRows* x;
  int precision;
  int64_t block_rows;  // from the shapes alone
  Codebook codebook;

  Search(const VqRows* x, int precision);
  // False if there is no memory.
  bool prepare(const VqCodes* codes, int metric, int threads);
  int64_t rows() const { return x->b * x->m; }
  int64_t blocks() const { return divide_up(rows(), block_rows); }
  int tile() const { return kernels->lanes * kernels->vectors; }
};

// One thread's search, a block at a time.
class BlockSearch {
 public:
  // False if there is no memory; so do the others.
  bool open(Search* search);
  // index [n] of rows first .. first + n - 1, n <= block_rows. nonfinite [n] is set where a row holds NaN
  // or infinity (its index is 0).
  bool run(int64_t first, int n, int64_t* index, uint8_t* nonfinite);

 private:
  // search.cpp: float32, then exactly what is left open
  bool sweep_block();
  void sweep_codes(const float* packed, int rows, float* best, float* second, int32_t* found);
  void certify(const Bound& limit, int i);
  void list_unbounded(int i);
  bool settle();
  void gather_rows(const int* rows, int n);
  void settle_candidates(const int* rows, int n);
  void take_exact_best(int i, const int32_t* candidates, int n);
  bool settle_by_scan();
  // search_tiles.cpp: the matrix unit, then float64, then exactly
  bool open_tiles();
  void pack_groups();
  bool tile_block();
  void tile_settle(int i);
  bool redo_rows();

  Search* search_ = nullptr;
  int64_t first_ = 0;
  int n_ = 0;
  int64_t* index_ = nullptr;
  uint8_t* nonfinite_ = nullptr;

  Buffer<float> packed_;         // [tiles][d][tile]; with the matrix unit one tile
  Buffer<float> norm2_, bound_;  // [block_rows]
  Buffer<float> best_, second_;  // [block_rows]
  Buffer<int32_t> found_;        // [block_rows]
  Buffer<int> open_, scan_;      // rows still undecided
  int open_count_ = 0, scan_count_ = 0;
  Buffer<float> row_;                         // [d]
  Buffer<float> compact_, threshold_;         // [d][tile], [tile]
  Buffer<float> lane_best_, lane_second_;     // [tile]
  Buffer<int32_t> lane_found_;                // [tile]
  Buffer<int32_t> candidates_, counts_;       // [tile][capacity], [tile]
  Buffer<double> exact_rows_;                 // [d][VQ_EXACT_LANES]

  // With the matrix unit; rows rounded up to groups
  Buffer<uint16_t> tile_rows_;
  Buffer<float> error2_, margin_, tile_best_;
  Buffer<float> tile_scores_, scratch_;            // [rows][capacity], [VQ_TILE_SCRATCH]
  Buffer<int32_t> tile_candidates_, tile_counts_;  // [rows][capacity], [rows]
};
