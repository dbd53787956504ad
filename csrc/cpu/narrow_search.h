// A block of rows against all codes with a narrow first pass: int8 or bfloat16, then float64, then exactly.
//
// The first pass leaves the few codes whose upper bound reaches the best; float64 rules out all of them but
// ties. A row that it leaves more than a list of goes to a SweepSearch, and so does a block where most rows do.
#pragma once

#include "cpu/exact_search.h"
#include "cpu/narrow.h"
#include "cpu/support.h"
#include "cpu/sweep_search.h"

namespace vq_cpu {

class NarrowSearch {
 public:
  // False if there is no memory; so does run, or if it was interrupted. `sweep` takes the rows that this
  // search gives up.
  bool open(Search* search, ExactSearch* exact, SweepSearch* sweep);
  bool run(const RowBlock& block);

 private:
  // Blocks that begin with float32 after one where most rows were given up.
  static constexpr int kSkippedBlocks = 15;

  void search_tile(int first);
  void resolve_row(int i, int lane);
  void give_up(int i);
  bool resolve_given_up();
  const float* row(int i);
  NextRows next_rows(int first, int most);

  Search* search_ = nullptr;
  ExactSearch* exact_ = nullptr;
  SweepSearch* sweep_ = nullptr;
  RowBlock block_ = {};
  NarrowFactors factors_ = {};
  NarrowTile tile_ = {};
  Buffer<int> given_up_rows_;  // [block_rows]
  int given_up_count_ = 0;
  // Given-up rows that equal the one given up before, of which row it is and what has been found for it since.
  Buffer<int> repeats_, repeats_of_;  // [block_rows]
  int repeat_count_ = 0;
  Buffer<float> last_row_;  // [dim]
  int last_position_ = -1;  // in this block; -1: in an earlier one
  int64_t last_index_ = -1;
  int skip_ = 0;  // blocks still to begin with float32

  // Of a tile
  Buffer<int32_t> rows_, candidates_, counts_;
  Buffer<float> scale_, norm_, lost_, bound_, group_bound_, most_, slack_, least_, upper_;
  Buffer<float> scratch_;  // [dim][lanes]
  Buffer<float> row_;      // [dim]
};

}  // namespace vq_cpu
