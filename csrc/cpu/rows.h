// Rows of any layout and dtype a few at a time, with their values side by side: in place where they lie so, else as
// float32 in a scratch.
#pragma once

#include <initializer_list>

#include "cpu/dtype.h"
#include "cpu/kernels.h"
#include "cpu/support.h"

namespace vq_cpu {

constexpr int kStreamRows = 64;

// Whether rows lie at one pitch from the first to the last, with their values side by side.
inline bool have_one_pitch(const VqRows* rows) {
  return rows->stride_dim == 1 && (rows->batches == 1 || rows->stride_batch == rows->rows * rows->stride_row);
}

// The dtype of streams whose rows are used together: that of all of them where each can be read and written in
// place, else float32. Null pointers are left out.
inline int common_dtype(std::initializer_list<const VqRows*> streams) {
  int dtype = -1;
  for (const VqRows* rows : streams) {
    if (!rows) continue;
    if (!have_one_pitch(rows) || (dtype >= 0 && rows->dtype != dtype)) return VQ_FLOAT32;
    dtype = rows->dtype;
  }
  return dtype;
}

class RowStream {
 public:
  // dtype: float32, or the rows' own if they have one pitch. False if there is no memory.
  bool open(const Kernels* kernels, const VqRows* rows, int dtype) {
    kernels_ = kernels;
    rows_ = rows;
    dtype_ = dtype;
    in_place_ = rows->dtype == dtype && rows->stride_dim == 1;
    one_pitch_ = have_one_pitch(rows);
    return in_place_ && one_pitch_ ? true : scratch_.resize(kStreamRows * rows->dim);
  }
  // n <= kStreamRows rows from `first`, not to be written to.
  RowSpan read(int64_t first, int n) {
    const RowSpan span = place(first, n);
    if (span.data == scratch_.get()) kernels_->load_rows(rows_, first, n, scratch_);
    return span;
  }
  // Where to write such rows; done() brings them to where they belong.
  RowSpan write(int64_t first, int n) {
    const RowSpan span = place(first, n);
    written_ = span.data == scratch_.get();
    return span;
  }
  void done(int64_t first, int n) {
    if (written_) kernels_->store_rows(rows_, first, n, scratch_);
  }

 private:
  RowSpan place(int64_t first, int n) {
    const int64_t b = first / rows_->rows, m = first % rows_->rows;
    if (!in_place_ || !(one_pitch_ || m + n <= rows_->rows)) return {scratch_.get(), rows_->dim, VQ_FLOAT32};
    const int64_t size = element_size(dtype_), start = b * rows_->stride_batch + m * rows_->stride_row;
    return {static_cast<char*>(rows_->data) + start * size, rows_->stride_row, dtype_};
  }

  const Kernels* kernels_ = nullptr;
  const VqRows* rows_ = nullptr;
  int dtype_ = VQ_FLOAT32;
  bool in_place_ = false, one_pitch_ = false, written_ = false;
  Buffer<float> scratch_;
};

inline int64_t row_count(const VqRows* rows) { return rows->batches * rows->rows; }

// How many rows are read together from `first` on.
inline int stream_rows(int64_t first, int64_t last) {
  return int(last - first < kStreamRows ? last - first : kStreamRows);
}

}  // namespace vq_cpu
