// The end of every search kernel: ambiguous rows scored again, then indices, and for the fused step
// the quantized rows, the squared error and each row's share of the statistics, while x and the codes
// are still in cache. The mean is made by the block that finishes last, in the order of the blocks.
#pragma once

#include "rescore.cuh"

namespace vq_cuda {

// What a kernel knows of its rows when it has seen its codes, in shared memory.
template <int ROWS>
struct RowState {
  float error[ROWS];  // bound on the error of a score
  float score[ROWS];
  float second[ROWS];
  int index[ROWS];
  int flag[ROWS];
};

template <int ROWS>
__device__ inline void keep_best(RowState<ROWS>* rows, int r, const Best& best) {
  rows->score[r] = best.score;
  rows->second[r] = best.second;
  rows->index[r] = best.index;
}

// The block of rows that this block works on, and the codes [first, end) that it takes.
__device__ inline int64_t row_block(const SearchArgs& a) {
  return blockIdx.x / static_cast<unsigned>(a.splits);
}

__device__ inline int first_code(const SearchArgs& a) {
  return static_cast<int>(blockIdx.x % static_cast<unsigned>(a.splits)) * a.split_codes;
}

__device__ inline int end_code(const SearchArgs& a) {
  return min(first_code(a) + a.split_codes, a.padded_codes);
}

struct FinishScratch {
  double squares[kWarps];
  int64_t rows[kWarps];
  int last;
};

inline int64_t finish_bytes(int64_t dim) {
  const int64_t rescore = rescore_bytes(dim), sums = static_cast<int64_t>(sizeof(FinishScratch));
  return rescore > sums ? rescore : sums;
}

// Rows at once of a thread, whose loads are under way together.
constexpr int kEmitRows = 4;

// Writes elements first, first + step, ... of up to kEmitRows quantized rows: row i is row numbers[i] of
// the batch, and is left alone if flags[i] has kOutside. Gives the rows' squared errors and largest
// magnitudes over those elements.
template <typename X, typename E>
__device__ void emit_elements(const SearchArgs& a, const int64_t (&numbers)[kEmitRows],
                              const int (&codes)[kEmitRows], const int (&flags)[kEmitRows], int first,
                              int step, float (&squares)[kEmitRows], float (&largest)[kEmitRows]) {
  const int dim = a.dim;
  const int64_t x_step = a.x_map.strides.dim, out_step = a.quantized_map.strides.dim;
  const X* x[kEmitRows];
  const E* code[kEmitRows];
  X* out[kEmitRows];
#pragma unroll
  for (int i = 0; i < kEmitRows; ++i) {
    const int64_t n = flags[i] & kOutside ? 0 : numbers[i];
    x[i] = static_cast<const X*>(a.x) + a.x_map.offset(n);
    out[i] = static_cast<X*>(a.quantized) + a.quantized_map.offset(n);
    code[i] = static_cast<const E*>(a.codebook) + static_cast<int64_t>(codes[i]) * dim;
  }
  for (int d = first; d < dim; d += step) {
    float value[kEmitRows], e[kEmitRows];
#pragma unroll
    for (int i = 0; i < kEmitRows; ++i) {
      const bool inside = (flags[i] & kOutside) == 0;
      value[i] = inside ? to_float(x[i][d * x_step]) : 0.0f;
      e[i] = inside ? to_float(code[i][d]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kEmitRows; ++i) {
      if (flags[i] & kOutside) continue;
      if (flags[i] & kNonfinite) e[i] = __uint_as_float(0x7fc00000u);
      const float difference = e[i] - value[i];
      squares[i] = fmaf(difference, difference, squares[i]);
      largest[i] = fmaxf(largest[i], fabsf(value[i]));
      out[i][d * out_step] = from_float<X>(flags[i] & kMasked ? 0.0f : e[i]);
    }
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

// Adds the block's squared error and rows; the last block of the grid writes the loss.
__device__ inline void reduce_error(const SearchArgs& a, double squares, int64_t rows,
                                    FinishScratch* scratch) {
  const unsigned blocks = gridDim.x / static_cast<unsigned>(a.splits);
  squares = block_sum<kThreads>(squares, scratch->squares);
  rows = block_sum<kThreads>(rows, scratch->rows);
  if (threadIdx.x == 0) {
    a.block_squares[row_block(a)] = squares;
    a.block_rows[row_block(a)] = rows;
    __threadfence();
    scratch->last = atomicAdd(a.ticket, 1u) == blocks - 1;
  }
  __syncthreads();
  if (!scratch->last) return;
  __threadfence();
  double total = 0.0;
  int64_t valid = 0;
  for (unsigned b = threadIdx.x; b < blocks; b += kThreads) {
    total += __ldcg(a.block_squares + b);
    valid += __ldcg(reinterpret_cast<const long long*>(a.block_rows) + b);
  }
  total = block_sum<kThreads>(total, scratch->squares);
  valid = block_sum<kThreads>(valid, scratch->rows);
  if (threadIdx.x == 0) {
    const double elements = static_cast<double>(valid > 0 ? valid : 1) * a.dim;
    // Rounded before it is weighted: the mean's bits do not depend on the weight.
    *a.loss = a.loss_weight * static_cast<float>(total / elements);
    *a.valid_rows = valid;
  }
}

// Merges the bests of the blocks that share these rows; false for all but the last block to arrive.
template <int ROWS>
__device__ bool merge_splits(const SearchArgs& a, RowState<ROWS>* rows, int* last) {
  const int64_t stride = gridDim.x / static_cast<unsigned>(a.splits) * static_cast<int64_t>(ROWS);
  const int64_t own = (blockIdx.x % static_cast<unsigned>(a.splits)) * stride;
  const int64_t first = row_block(a) * ROWS;
  for (int r = static_cast<int>(threadIdx.x); r < ROWS; r += kThreads) {
    Best best;
    best.score = rows->score[r];
    best.second = rows->second[r];
    best.index = rows->index[r];
    a.partial[own + first + r] = best;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *last = atomicAdd(a.split_tickets + row_block(a), 1u) == static_cast<unsigned>(a.splits) - 1;
  }
  __syncthreads();
  if (!*last) return false;
  __threadfence();
  for (int r = static_cast<int>(threadIdx.x); r < ROWS; r += kThreads) {
    Best best;
    for (int split = 0; split < a.splits; ++split) {
      const Best* other = a.partial + split * stride + first + r;
      best.merge(__ldcg(&other->score), __ldcg(&other->second), __ldcg(&other->index));
    }
    keep_best(rows, r, best);
  }
  __syncthreads();
  return true;
}

// scratch: finish_bytes(D) of shared memory, free to use. Not inlined: it is the last thing every kernel
// does, so that a call costs nothing and saves a copy of it in each.
template <typename X, int ROWS>
__device__ __noinline__ void finish(const SearchArgs& a, RowState<ROWS>* state, unsigned char* scratch) {
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t first_row = row_block(a) * ROWS;
  int *index = state->index, *flag = state->flag;
  __syncthreads();
  if (a.splits > 1 && !merge_splits<ROWS>(a, state, reinterpret_cast<int*>(scratch))) return;
  for (int r = tid; r < ROWS; r += kThreads) {
    if (flag[r] & kNonfinite) index[r] = 0;
    if (flag[r] == kCertain && !certain(state->score[r], state->second[r], state->error[r])) {
      flag[r] = kAmbiguous;
    }
  }
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
  if (a.loss == nullptr) {
    for (int r = tid; r < ROWS; r += kThreads) {
      if (!(flag[r] & kOutside)) a.indices[first_row + r] = index[r];
    }
    return;
  }
  // Channel-first: neighbouring threads take neighbouring rows. Else a warp takes a row's elements.
  double squares = 0.0;
  int64_t rows = 0;
  const bool by_row = a.lanes_over_rows;
  const int lane = tid % kWarp;
  const int stride = by_row ? kThreads : kWarps;  // from one of a thread's rows to the next
  for (int first = by_row ? tid : tid / kWarp; first < ROWS; first += kEmitRows * stride) {
    int64_t numbers[kEmitRows];
    int codes[kEmitRows], flags[kEmitRows];
    float row_squares[kEmitRows] = {}, largest[kEmitRows] = {};
#pragma unroll
    for (int i = 0; i < kEmitRows; ++i) {
      const int r = first + i * stride;
      numbers[i] = first_row + r;
      codes[i] = r < ROWS ? index[r] : 0;
      flags[i] = r < ROWS ? flag[r] : kOutside;
    }
    const int start = by_row ? 0 : lane, step = by_row ? 1 : kWarp;
    if (a.codebook_is_float) {
      emit_elements<X, float>(a, numbers, codes, flags, start, step, row_squares, largest);
    } else {
      emit_elements<X, X>(a, numbers, codes, flags, start, step, row_squares, largest);
    }
#pragma unroll
    for (int i = 0; i < kEmitRows; ++i) {
      if (flags[i] & kOutside) continue;
      if (!(flags[i] & kMasked)) squares += row_squares[i];
      if (!by_row && a.statistics.counts != nullptr) largest[i] = warp_max(largest[i]);
      if (!by_row && lane != 0) continue;
      if (!(flags[i] & kMasked)) rows += 1;
      count_row(a, numbers[i], codes[i], flags[i], largest[i]);
    }
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
