// Rows that come back between others, with their nearest codes.
#pragma once

#include "cpu/kernels.h"
#include "cpu/support.h"

namespace vq_cpu {

// The rows that were scanned last, with their answers, of which those stay that are met again: rows of zeros or of
// padding, between others.
class RememberedRows {
 public:
  bool open(int64_t dim);
  // Whether to look for the next row: for every eighth once none of the last ones was met again.
  bool is_asked() { return misses_ < kPatience || ++misses_ % 8 == 0; }
  // The answer, or -1.
  int64_t find(const float* row);
  void add(const float* row, int64_t index);

 private:
  static constexpr int kRows = 2 * kExactLanes, kPatience = 4 * kRows;

  static float key(const float* row, int64_t dim) {
    return row[0] + 3.0f * row[dim / 3] + 5.0f * row[dim / 2] + 7.0f * row[dim - 1];
  }

  int64_t dim_ = 0;
  int count_ = 0;
  uint64_t turn_ = 0, misses_ = 0;
  float keys_[kRows] = {};
  int64_t index_[kRows] = {};
  uint64_t met_[kRows] = {};
  Buffer<float> rows_;  // [kRows][dim]
};

}  // namespace vq_cpu
