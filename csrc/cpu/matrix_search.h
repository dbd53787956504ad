// A block of rows against all codes with a matrix unit: bfloat16 first, then float64, then exactly.
//
// The first pass is so much faster than float32 that its wide error bound pays: it leaves a few codes a
// row, of which float64 rules out all but ties. A row that it leaves more than a list of goes to a
// SweepSearch.
#pragma once

#include "cpu/exact_search.h"
#include "cpu/support.h"
#include "cpu/sweep_search.h"

namespace vq_cpu {

class MatrixSearch {
 public:
  // False if there is no memory; so does run, or if it was interrupted. `sweep` takes the rows that this
  // search gives up.
  bool open(Search* search, ExactSearch* exact, SweepSearch* sweep);
  bool run(const RowBlock& block);

 private:
  void pack_groups();
  void search_block();
  void resolve_row(int i);
  bool fall_back_to_sweep();

  Search* search_ = nullptr;
  ExactSearch* exact_ = nullptr;
  SweepSearch* sweep_ = nullptr;
  RowBlock block_ = {};
  Buffer<int> given_up_rows_;  // [block_rows]
  int given_up_count_ = 0;

  // rows: block_rows rounded up to groups
  Buffer<float> packed_;                        // [dim][tile]
  Buffer<uint16_t> groups_;                     // as MatrixKernels::pack_rows leaves them
  Buffer<float> norm2_, error2_;                // [rows]
  Buffer<float> margin_, best_;                 // [rows]
  Buffer<float> scores_, scratch_;              // [rows][capacity], [kMatrixScratch]
  Buffer<int32_t> candidates_, counts_;         // [rows][capacity], [rows]
  Buffer<float> row_;                           // [dim]
};

}  // namespace vq_cpu
