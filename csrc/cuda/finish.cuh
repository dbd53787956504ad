// The end of every search kernel: ambiguous rows scored again, then indices, and for the fused step
// the quantized rows, the squared error and each row's share of the statistics, while x and the codes
// are still in cache. The mean is made by the block that finishes last, in the order of the blocks.
#pragma once

#include "rescore.cuh"

namespace vq_cuda {

struct FinishScratch {
  double squares[kWarps];
  int64_t rows[kWarps];
  int last;
};

inline int64_t finish_bytes(int64_t dim) {
  const int64_t rescore = rescore_bytes(dim), sums = static_cast<int64_t>(sizeof(FinishScratch));
  return rescore > sums ? rescore : sums;
}

// Squared error and largest magnitude of row elements first, first + step, ..., which are also written.
template <typename X, typename E>
__device__ void emit_elements(const SearchArgs& a, int64_t n, int j, int flag, int first, int step,
                              float& squares, float& largest) {
  const X* x = static_cast<const X*>(a.x) + a.x_map.offset(n);
  X* out = static_cast<X*>(a.out) + a.out_map.offset(n);
  const E* code = static_cast<const E*>(a.codebook) + static_cast<int64_t>(j) * a.dim;
  for (int d = first; d < a.dim; d += step) {
    const float value = to_float(x[d * a.x_map.strides.dim]);
    float e = flag & kNonfinite ? __uint_as_float(0x7fc00000u) : to_float(code[d]);
    const float difference = e - value;
    squares = fmaf(difference, difference, squares);
    largest = fmaxf(largest, fabsf(value));
    if (flag & kMasked) e = 0.0f;
    out[d * a.out_map.strides.dim] = from_float<X>(e);
  }
}

template <typename X>
__device__ void emit_row(const SearchArgs& a, int64_t n, int j, int flag, int first, int step, float& squares,
                         float& largest) {
  if (a.codebook_is_float) {
    emit_elements<X, float>(a, n, j, flag, first, step, squares, largest);
  } else {
    emit_elements<X, X>(a, n, j, flag, first, step, squares, largest);
  }
}

__device__ inline void count_row(const SearchArgs& a, int64_t n, int j, int flag, float largest) {
  a.indices[n] = flag & kMasked ? -1 : j;
  if (a.statistics.counts == nullptr) return;
  const bool counts = (flag & (kMasked | kNonfinite)) == 0;
  a.statistics.slots[n] = counts ? j : -1;
  if (!counts) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(a.statistics.counts + j), 1ull);
  atomicMax(a.statistics.largest + j, __float_as_uint(largest));
}

// Adds the block's squared error and rows; the last block of the grid writes the mean.
__device__ inline void reduce_error(const SearchArgs& a, double squares, int64_t rows,
                                    FinishScratch* scratch) {
  squares = block_sum<kThreads>(squares, scratch->squares);
  rows = block_sum<kThreads>(rows, scratch->rows);
  if (threadIdx.x == 0) {
    a.block_squares[blockIdx.x] = squares;
    a.block_rows[blockIdx.x] = rows;
    __threadfence();
    scratch->last = atomicAdd(a.ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!scratch->last) return;
  __threadfence();
  double total = 0.0;
  int64_t valid = 0;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) {
    total += __ldcg(a.block_squares + b);
    valid += __ldcg(reinterpret_cast<const long long*>(a.block_rows) + b);
  }
  total = block_sum<kThreads>(total, scratch->squares);
  valid = block_sum<kThreads>(valid, scratch->rows);
  if (threadIdx.x == 0) {
    const double elements = static_cast<double>(valid > 0 ? valid : 1) * a.dim;
    *a.mse = static_cast<float>(total / elements);
    *a.valid_rows = valid;
  }
}

// index and flag: [ROWS] in shared memory; scratch: finish_bytes(D) of it, free to use.
template <typename X, int ROWS>
__device__ void finish(const SearchArgs& a, int64_t first_row, int* index, const int* flag,
                       unsigned char* scratch) {
  const int tid = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (a.certify) {
    for (int r = 0; r < ROWS; ++r) {
      if (flag[r] != kAmbiguous) continue;
      const int j = rescore_row<X>(a, a.x_map.offset(first_row + r), index[r], scratch);
      __syncthreads();
      if (tid == 0) index[r] = j;
    }
    __syncthreads();
  }
  if (a.mse == nullptr) {
    for (int r = tid; r < ROWS; r += kThreads) {
      if (!(flag[r] & kOutside)) a.indices[first_row + r] = index[r];
    }
    return;
  }
  double squares = 0.0;
  int64_t rows = 0;
  const int lane = tid % kWarp;
  const int step = a.lanes_over_rows ? kThreads : kWarps;
  for (int r = a.lanes_over_rows ? tid : tid / kWarp; r < ROWS; r += step) {
    if (flag[r] & kOutside) continue;
    float row_squares = 0.0f, largest = 0.0f;
    bool writes = true;
    if (a.lanes_over_rows) {
      emit_row<X>(a, first_row + r, index[r], flag[r], 0, 1, row_squares, largest);
    } else {
      emit_row<X>(a, first_row + r, index[r], flag[r], lane, kWarp, row_squares, largest);
      row_squares = warp_sum(row_squares);
      largest = warp_max(largest);
      writes = lane == 0;
    }
    if (!writes) continue;
    count_row(a, first_row + r, index[r], flag[r], largest);
    if (flag[r] & kMasked) continue;
    squares += row_squares;
    rows += 1;
  }
  reduce_error(a, squares, rows, reinterpret_cast<FinishScratch*>(scratch));
}

// The flag of row n before the search knows more: whether it exists, counts and is finite.
__device__ inline int row_flag(const SearchArgs& a, int64_t n, bool nonfinite) {
  if (n >= a.rows) return kOutside;
  int flag = nonfinite ? kNonfinite : kCertain;
  if (a.mask != nullptr && a.mask[n] == 0) flag |= kMasked;
  return flag;
}

}  // namespace vq_cuda
