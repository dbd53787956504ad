// Rows of any layout and dtype as float32 rows, a few at a time: in place where they are that already.
#pragma once

#include "cpu/kernels.h"
#include "cpu/support.h"

namespace vq_cpu {

constexpr int kStreamRows = 64;

class RowStream {
 public:
  // False if there is no memory.
  bool open(const Kernels* kernels, const VqRows* rows) {
    kernels_ = kernels;
    rows_ = rows;
    in_place_ = rows->dtype == VQ_FLOAT32 && rows->stride_dim == 1;
    one_pitch_ = rows->batches == 1 || rows->stride_batch == rows->rows * rows->stride_row;
    return in_place_ && one_pitch_ ? true : scratch_.resize(kStreamRows * rows->dim);
  }
  // n <= kStreamRows rows from `first`, `pitch` floats apart.
  const float* read(int64_t first, int n, int64_t* pitch) {
    if (float* p = place(first, n, pitch)) return p;
    kernels_->load_rows(rows_, first, n, scratch_);
    return scratch_;
  }
  // Where to write such rows; done() brings them to where they belong.
  float* write(int64_t first, int n, int64_t* pitch) {
    float* p = place(first, n, pitch);
    written_ = p ? nullptr : scratch_.get();
    return p ? p : scratch_.get();
  }
  void done(int64_t first, int n) {
    if (written_) kernels_->store_rows(rows_, first, n, written_);
  }

 private:
  float* place(int64_t first, int n, int64_t* pitch) {
    const int64_t b = first / rows_->rows, m = first % rows_->rows;
    if (!in_place_ || !(one_pitch_ || m + n <= rows_->rows)) {
      *pitch = rows_->dim;
      return nullptr;
    }
    *pitch = rows_->stride_row;
    return static_cast<float*>(rows_->data) + b * rows_->stride_batch + m * rows_->stride_row;
  }

  const Kernels* kernels_ = nullptr;
  const VqRows* rows_ = nullptr;
  bool in_place_ = false, one_pitch_ = false;
  const float* written_ = nullptr;
  Buffer<float> scratch_;
};

inline int64_t row_count(const VqRows* rows) { return rows->batches * rows->rows; }

// How many rows are read together from `first` on.
inline int stream_rows(int64_t first, int64_t last) {
  return int(last - first < kStreamRows ? last - first : kStreamRows);
}

}  // namespace vq_cpu
