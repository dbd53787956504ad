// What the fast passes leave undecided, by the contract's own score: a few candidates of a row, or all codes.
#pragma once

#include "cpu/exact.h"
#include "cpu/support.h"

namespace vq_cpu {

struct Search;

// Rows first .. first + n - 1, n <= Search::block_rows.
struct RowBlock {
  int64_t first;
  int n;
  int64_t* index;      // [n], written
  uint8_t* nonfinite;  // [n], written: 1 where a row holds NaN or infinity; its index is 0
};

class ExactSearch {
 public:
  // False if there is no memory; so does scan_queued_rows, or if it was interrupted.
  bool open(Search* search);
  void start(const RowBlock& block);
  // The nearest of row i's candidates, which come in ascending order, so that a tie keeps the lowest.
  void choose_exactly(int i, const int32_t* candidates, int n);
  // For a row that may hold NaN or infinity, or whose scores could overflow: the one gets index 0, the other
  // is compared with all codes.
  void queue_unbounded(int i);
  // Row i is to be compared with all codes.
  void queue_for_scan(int i) { scan_rows_[scan_count_++] = i; }
  bool scan_queued_rows();

 private:
  // Scans that begin exactly after one that float64 could not settle.
  static constexpr int kSkippedScans = 15;

  bool scan_lanes(int from, int to, int lanes);
  bool settle_lanes(int lanes, int64_t* nearest);
  int64_t nearest_of(const float* row, const int32_t* candidates, int n) const;

  Search* search_ = nullptr;
  RowBlock block_ = {};
  Buffer<int> scan_rows_;  // [block_rows]
  int scan_count_ = 0;
  Buffer<int> lane_of_;         // [block_rows]: of each queued row; equal rows in succession share one
  Buffer<float> row_;           // [dim]
  Buffer<float> last_row_;      // [dim]: the last that was scanned, of any block, and its answer
  int64_t last_index_ = -1;
  Buffer<double> exact_rows_;  // [dim][kExactLanes]
  Buffer<double> scores_;      // [codes][kExactLanes], once a row was scanned
  Buffer<float> lane_row_;     // [dim]
  int skip_ = 0;               // scans still to begin exactly
};

}  // namespace vq_cpu
