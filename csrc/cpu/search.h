// The nearest code of a block of rows: what nearest_code.cpp and vector_quantize.cpp share.
#pragma once

#include "cpu/codebook.h"
#include "cpu/kernels.h"
#include "cpu/support.h"

struct Search {
  const VqKernels* kernels;
  Codebook* codebook;
  const VqRows* x;
  int precision;
  int64_t block_rows;  // a multiple of the tile, from the shapes alone

  Search(const VqKernels* kernels, Codebook* codebook, const VqRows* x, int precision);
  int64_t rows() const { return x->b * x->m; }
  int64_t blocks() const { return divide_up(rows(), block_rows); }
};

// What one thread needs to search a block.
class SearchScratch {
 public:
  bool resize(const Search& search);
  // index [n] of rows first .. first + n - 1, n <= block_rows. nonfinite [n] is set where a row holds NaN
  // or infinity (its index is 0). False if there is no memory.
  bool search(const Search& search, int64_t first, int n, int64_t* index, uint8_t* nonfinite);

 private:
  void sweep_all(const Search& search, int n);
  bool settle(const Search& search, int64_t first, int64_t* index);
  void settle_candidates(const Search& search, int64_t first, const int* rows, int n, int64_t* index);
  bool settle_by_scan(const Search& search, int64_t first, int64_t* index);

  Buffer<float> packed_;  // [tiles][d][tile]
  Buffer<float> norm2_, best_, second_, bound_;  // [block_rows]
  Buffer<int32_t> index_;                        // [block_rows]
  Buffer<int> open_, scan_;                      // rows still undecided
  Buffer<float> row_;                            // [d]
  Buffer<float> compact_, threshold_;            // [d][tile], [tile]
  Buffer<int32_t> candidates_, counts_;          // [tile][capacity], [tile]
  Buffer<double> exact_rows_;                    // [d][VQ_EXACT_LANES]
  int open_count_ = 0, scan_count_ = 0;
};
