// A block of rows against all codes with a matrix unit: bfloat16 first, then float64, then exactly.
//
// The first pass is so much faster than float32 that its wide error bound pays: it leaves a few codes a
// row, of which float64 rules out all but ties. A row that it leaves more than a list of goes to a NarrowSearch in
// int8, whose bound is of each code, where the instruction set has one, else to a SweepSearch.
#pragma once

#include "cpu/exact_search.h"
#include "cpu/narrow_search.h"
#include "cpu/support.h"
#include "cpu/sweep_search.h"

namespace vq_cpu {

class MatrixSearch {
 public:
  // False if there is no memory; so does run, or if it was interrupted. `narrow`, not open yet, with its `finer` or null,
  // takes the rows that this search gives up; where it is null, or has no bound, `sweep` does.
  bool open(Search* search, ExactSearch* exact, SweepSearch* sweep, NarrowSearch* narrow, NarrowSearch* finer);
  bool run(const RowBlock& block);

 private:
  // Blocks that the narrow search begins after one where more than a half of the rows was given up: such rows cost both
  // passes, and int8 takes less than twice the time of this one.
  static constexpr int kSkippedBlocks = 15;

  void pack_groups();
  void search_block();
  void resolve_row(int i);
  bool resolve_given_up();
  bool ensure_narrow();

  Search* search_ = nullptr;
  ExactSearch* exact_ = nullptr;
  SweepSearch* sweep_ = nullptr;
  NarrowSearch *narrow_ = nullptr, *finer_ = nullptr;
  bool narrow_is_open_ = false;
  int skip_ = 0;  // blocks still to be begun by the narrow search
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
