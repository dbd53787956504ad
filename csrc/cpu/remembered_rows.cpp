#include "cpu/remembered_rows.h"

#include <string.h>

#include "cpu/exact.h"

namespace vq_cpu {

bool RememberedRows::open(int64_t dim) {
  dim_ = dim;
  return rows_.resize(kRows * dim);
}

int64_t RememberedRows::find(const float* row) {
  const float wanted = key(row, dim_);
  for (int r = 0; r < count_; ++r)
    if (keys_[r] == wanted && rows_are_equal(row, rows_ + r * dim_, dim_)) {
      met_[r] = ++turn_;
      misses_ = 0;
      return index_[r];
    }
  ++misses_;
  return -1;
}

void RememberedRows::add(const float* row, int64_t index) {
  int to = 0;
  if (count_ < kRows) to = count_++;
  else
    for (int r = 1; r < kRows; ++r)
      if (met_[r] < met_[to]) to = r;
  memcpy(rows_ + to * dim_, row, size_t(dim_) * sizeof(float));
  keys_[to] = key(row, dim_);
  index_[to] = index;
  met_[to] = ++turn_;
}

}  // namespace vq_cpu
