// A block of rows against all codes with a narrow first pass: int8 or bfloat16, then float32, float64, and exactly.
//
// The first pass leaves the few codes whose upper bound reaches the best; float32 rules out nearly all of them, and
// float64 all but ties. A row that it leaves more than a list of goes to a SweepSearch, and so does a block where most
// rows do.
#pragma once

#include "cpu/exact_search.h"
#include "cpu/narrow_codebook.h"
#include "cpu/support.h"
#include "cpu/sweep_search.h"

namespace vq_cpu {

class NarrowSearch {
 public:
  // False if there is no memory; so does run, or if it was interrupted. `sweep` takes the rows that this
  // search gives up, and `finer`, not open yet, or null, the blocks that it expects to give up.
  bool open(Search* search, const NarrowCodebook& codebook, ExactSearch* exact, SweepSearch* sweep,
            NarrowSearch* finer);
  bool run(const RowBlock& block);
  // Rows [count] of a block that another search gave up, which has given the ExactSearch its start.
  bool run_rows(const RowBlock& block, const int* rows, int count);

 private:
  // Blocks that another search begins after one where more than a half of a tile was given up, or an eighth where there
  // is a finer one.
  static constexpr int kSkippedBlocks = 15;

  // Rows [count] of a block; null: its first ones.
  bool search(const RowBlock& block, const int* rows, int count);
  bool search_by_other(const RowBlock& block, const int* rows, int count);
  void pack_tile(int first);
  bool pack_listed(const int* rows);
  void search_tile();
  struct Score {
    double value, error;

    double low() const { return value - error; }
    double high() const { return value + error; }
  };
  void resolve_tile(int first, const int* rows);
  void resolve_row(int i, int lane, Score likely);
  // Of the code in a place of the narrow codebook.
  Score quick_score(const float* x, int lane, int64_t place) const;  // in float32
  Score score(const float* x, int lane, int64_t place) const;        // in float64
  Score with_error(double value, double factor, int lane, int64_t place) const;
  const float* code_at(int64_t place) const;
  static int keep_open(Score* scores, int32_t* candidates, int n);
  void give_up(int i);
  bool resolve_given_up();
  bool others_are_faster(int given_up) const;
  const float* row(int i);
  NextRows next_rows(int first, int most);

  Search* search_ = nullptr;
  ExactSearch* exact_ = nullptr;
  SweepSearch* sweep_ = nullptr;
  NarrowSearch* finer_ = nullptr;
  const NarrowCodebook* codebook_ = nullptr;
  RowBlock block_ = {};
  NarrowFactors factors_ = {};
  NarrowTile tile_ = {};
  Buffer<int> given_up_rows_;  // [block_rows]
  int given_up_count_ = 0;
  int64_t given_up_total_ = 0;  // in all blocks
  // Given-up rows that equal the one given up before, of which row it is and what has been found for it since.
  Buffer<int> repeats_, repeats_of_;  // [block_rows]
  int repeat_count_ = 0;
  Buffer<float> last_row_;  // [dim]
  int last_position_ = -1;  // in this block; -1: in an earlier one
  int64_t last_index_ = -1;
  int skip_ = 0;  // blocks still to be begun by another search
  // Codes that a tile left open beside the likely best ones, and the groups they are in.
  int64_t opened_codes_ = 0, opened_groups_ = 0;

  // Of a tile
  Buffer<int32_t> rows_, groups_, counts_, lead_, code_, is_doubtful_;
  Buffer<int32_t> doubtful_;  // [tile]: the lanes that are
  Buffer<Score> scores_;      // [tile]: of their likely best codes
  Buffer<float> scale_, norm_, lost_, most_, run_best_, run_rest_, slack_, least_;
  Buffer<float> upper_, best_, second_, leading_, others_;
  Buffer<float> scratch_;  // [dim][lanes]
  Buffer<float> row_;      // [dim]
  Buffer<float> listed_;   // [tile][dim], once rows were listed
};

}  // namespace vq_cpu
