// A block of rows against all codes: float32 first, then float64, exactly where that leaves a doubt.
//
// Rows stay packed in the second-level cache while the codes pass in blocks; each tile of rows meets
// each block of codes once. Ambiguous rows are gathered into tiles of their own and compared a second time, by their
// differences from all codes, whose error is relative to the distance (cosine: by products again). The codes that are
// left are scored in float64, and what ties there exactly; where they are too many, or float32 could
// overflow, all codes are.
#pragma once

#include "cpu/certificate.h"
#include "cpu/exact_search.h"
#include "cpu/regions.h"
#include "cpu/support.h"

namespace vq_cpu {

class SweepSearch {
 public:
  // False if there is no memory; so do the others, or if they were interrupted. `exact` decides what float32
  // cannot.
  bool open(Search* search, ExactSearch* exact);
  bool run(const RowBlock& block);
  // The same without a first sweep, for a block that another search expects to give up. What another search gave up
  // is searched exactly at every precision, as the rest of its rows was.
  bool run_ambiguous(const RowBlock& block);
  // Rows [count] of a block that another search gave up, which has given the ExactSearch its start.
  bool run_rows(const RowBlock& block, const int* rows, int count);

 private:
  // Blocks that begin with a later step, after one of which most rows came to it: with differences, or with the scan.
  static constexpr int kSkippedBlocks = 15;

  bool sweep_codes(const float* packed, int rows, float* best, float* second, int32_t* best_index);
  bool run_all(const RowBlock& block, bool exact);
  bool scan_at_once(const RowBlock& block);
  bool scan_queued_rows();
  void certify(const Bound& bound, int i, bool exact);
  bool resolve_ambiguous_rows();
  bool gather_rows(const int* rows, int n);
  bool compare_by_regions();
  bool resolve_by_products(const int* rows, int n);
  // The tile in compact_ and compact_norm2_ against all codes.
  bool compare_differences(const int* rows, int n, unsigned regions);
  // The nearest of row i's candidates, in ascending order, for the one in lane `lane` of compact_.
  void choose(int i, int lane, const int32_t* candidates, int n);

  Search* search_ = nullptr;
  ExactSearch* exact_ = nullptr;
  RowBlock block_ = {};

  Buffer<float> packed_;                      // [tiles][dim][tile], once run() was called
  Buffer<float> norm2_, bound_;               // [block_rows]
  Buffer<float> best_, second_;               // [block_rows]
  Buffer<int32_t> best_index_;                // [block_rows]
  Buffer<int> ambiguous_rows_;                // [block_rows]
  int ambiguous_count_ = 0;
  int skip_ = 0;                              // blocks still to be scanned at once
  int skip_sweep_ = 0;                        // blocks still to be compared by differences at once
  RegionOrder order_;
  Buffer<float> row_;                         // [dim]
  Buffer<float> listed_;                      // [tile][dim], once rows were listed
  Buffer<float> compact_, threshold_, compact_norm2_;  // [dim][tile], [tile], [tile]
  Buffer<float> lane_best_, lane_second_;     // [tile]
  Buffer<int32_t> lane_best_index_;           // [tile]
  Buffer<int32_t> candidates_, counts_;       // [tile][capacity], [tile]
  Buffer<float> squares_, slack_, limit_;     // [tile][capacity], [tile], [tile]
};

}  // namespace vq_cpu
