// What the fast passes leave undecided, by the contract's own score: a few candidates of a row, or all codes.
#pragma once

#include "cpu/exact.h"
#include "cpu/kernels.h"
#include "cpu/regions.h"
#include "cpu/remembered_rows.h"
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
  // The nearest of row i's candidates, which come in ascending order, so that a tie keeps the lowest; or the row is
  // queued, as queue_long.
  void choose_exactly(int i, const int32_t* candidates, int n);
  // The same by float64 first, of at most kMostListed candidates in any order; row: its values, norm: an upper bound of
  // its length.
  // From kListed on it is faster than one score after the other, each of which may rule out some of the rest.
  static constexpr int kListed = 4, kMostListed = 128;
  void choose_listed(int i, const float* row, double norm, const int32_t* candidates, int n);
  // Whether row i, whose list takes `list_ns` (on an EPYC), is better scanned with other rows; then it is queued.
  bool queue_long(int i, double list_ns);
  // For a row that may hold NaN or infinity, or whose scores could overflow: the one gets index 0, the other
  // is compared with all codes.
  void queue_unbounded(int i);
  // Row i is to be compared with all codes.
  void queue_for_scan(int i) { scan_rows_[scan_count_++] = i; }
  int queued() const { return scan_count_; }
  bool scan_queued_rows();

 private:
  // Rows of one kind: those of one value throughout, to which a code is its length and the sum of its values, or others.
  bool scan_rows(const int* rows, int count, bool flat, bool by_region);
  bool scan_lanes(const int* rows, int from, int to, int lanes, bool flat, unsigned regions);
  bool ensure_scan();
  void widen_lanes(int lanes, int64_t dim);
  bool settle_lanes(int lanes, bool flat, unsigned regions, int64_t* nearest);
  bool settle_in_whole_numbers(int lanes, bool flat, const double* norms, int64_t* nearest);
  int64_t nearest_of(const float* row, const int32_t* candidates, int n);
  ExactSum half_of(int64_t code);

  Search* search_ = nullptr;
  RowBlock block_ = {};
  Buffer<int> scan_rows_;  // [block_rows]
  int scan_count_ = 0;
  Buffer<int> flat_rows_;  // [block_rows]
  int flat_count_ = 0;
  bool has_lengths_ = false;  // of the codebook
  int long_lists_ = 0;  // of this block, and half of those before
  RegionOrder order_;
  unsigned asked_ = 0;          // the lanes whose rows were looked for
  Buffer<int> lane_of_;         // [block_rows]: of each queued row, which equal rows share; -1: it was met before
  Buffer<float> row_;           // [dim]
  RememberedRows remembered_;   // of the scans before, of any block
  Buffer<double> exact_rows_;  // [dim][kExactLanes]
  Buffer<double> scores_;      // scratch of a scan, once a row was scanned
  Buffer<uint16_t> near_;      // [codes]: of the scan, the lanes in which a code is open
  Buffer<int32_t> groups_;     // the same
  Buffer<int32_t> open_;       // [codes + 1]: those that are, in ascending order
  int64_t open_count_ = 0;
  Buffer<uint64_t> fixed_rows_;    // [dim][kExactLanes], once ties were many
  Buffer<uint32_t> fixed_rows32_;  // the same modulo 2^32
  Buffer<float> lane_rows_;    // [kExactLanes][dim]
  // Of the codes whose exact score was taken: the sum over e^2 / 2, from which every score begins; once one was
  Buffer<uint8_t> has_half_;  // [codes]
  Buffer<ExactSum> halves_;   // [codes]
};

}  // namespace vq_cpu
