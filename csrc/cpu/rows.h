// Rows of any layout and dtype as float32 rows, in tiles: in place where they are that already.
#pragma once

#include "cpu/kernels.h"
#include "cpu/support.h"

constexpr int ROWS_A_TILE = 64;

class RowTile {
 public:
  // False if there is no memory.
  bool open(const VqKernels* kernels, const VqRows* rows) {
    kernels_ = kernels;
    rows_ = rows;
    in_place_ = rows->dtype == VQ_F32 && rows->stride_d == 1;
    one_pitch_ = rows->b == 1 || rows->stride_b == rows->m * rows->stride_m;
    return in_place_ && one_pitch_ ? true : scratch_.resize(ROWS_A_TILE * rows->d);
  }
  // n <= ROWS_A_TILE rows from `first`, `pitch` floats apart.
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
    const int64_t b = first / rows_->m, m = first % rows_->m;
    if (!in_place_ || !(one_pitch_ || m + n <= rows_->m)) {
      *pitch = rows_->d;
      return nullptr;
    }
    *pitch = rows_->stride_m;
    return static_cast<float*>(rows_->data) + b * rows_->stride_b + m * rows_->stride_m;
  }

  const VqKernels* kernels_ = nullptr;
  const VqRows* rows_ = nullptr;
  bool in_place_ = false, one_pitch_ = false;
  const float* written_ = nullptr;
  Buffer<float> scratch_;
};

inline int64_t row_count(const VqRows* rows) { return rows->b * rows->m; }

// How many rows the tile that starts at `first` holds.
inline int tile_rows(int64_t first, int64_t last) {
  return int(last - first < ROWS_A_TILE ? last - first : ROWS_A_TILE);
}
