// The end of every search kernel: rows that the certificate leaves open are listed for the second pass
// (resolve.cu); the others get their indices, and for the fused step their quantized rows, squared errors and
// share of the statistics, while x and the codes are still in cache.
#pragma once

#include "emit.cuh"

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
  LossScratch loss;
  int open_rows[kSmallBlockRows / kWarp];  // of each warp's rows
  unsigned first_group;
};

inline int64_t finish_bytes() {
  return static_cast<int64_t>(sizeof(FinishScratch));
}

// Lists the open rows in groups for resolve.cu, with the best code so far as a hint in indices, and takes
// them out of this block's hands. Returns how many there are.
template <int ROWS>
__device__ inline int list_open_rows(const SearchArgs& a, RowState<ROWS>* state, FinishScratch* scratch) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp;
  constexpr int kParts = (ROWS + kThreads - 1) / kThreads;
  unsigned votes[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int r = part * kThreads + tid;
    votes[part] = __ballot_sync(kAllLanes, r < ROWS && state->flag[r] == kAmbiguous);
    if (lane == 0 && r < ROWS) scratch->open_rows[r / kWarp] = __popc(votes[part]);
  }
  __syncthreads();
  int total = 0;
  for (int w = 0; w < ROWS / kWarp; ++w) total += scratch->open_rows[w];
  const unsigned groups = static_cast<unsigned>((total + a.open.group_rows - 1) / a.open.group_rows);
  if (tid == 0) {
    scratch->first_group = total > 0 ? atomicAdd(a.open.groups, groups) : 0u;
    a.open.of_block[row_block(a)] = OpenGroups{scratch->first_group, groups};
  }
  if (total == 0) return 0;
  __syncthreads();
  const int64_t first_row = row_block(a) * ROWS;
  int32_t* list = a.open.rows + static_cast<int64_t>(scratch->first_group) * a.open.group_rows;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int r = part * kThreads + tid;
    if (r >= ROWS || !(votes[part] >> lane & 1u)) continue;
    int place = __popc(votes[part] & ((1u << lane) - 1u));
    for (int w = 0; w < r / kWarp; ++w) place += scratch->open_rows[w];
    list[place] = static_cast<int32_t>(first_row + r);
    a.indices[first_row + r] = state->index[r];
    state->flag[r] = kOutside;
  }
  const int padded = static_cast<int>(groups) * a.open.group_rows;
  for (int place = total + tid; place < padded; place += kThreads) list[place] = -1;
  __syncthreads();
  return total;
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
  if (!is_last_block(a.split_tickets + row_block(a), static_cast<unsigned>(a.splits), last)) return false;
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

// scratch: finish_bytes() of shared memory, free to use. Not inlined: it is the last thing every kernel
// does, so that a call costs nothing and saves a copy of it in each.
template <typename X, int ROWS>
__device__ __noinline__ void finish(const SearchArgs& a, RowState<ROWS>* state, unsigned char* scratch_bytes) {
  FinishScratch* scratch = reinterpret_cast<FinishScratch*>(scratch_bytes);
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t first_row = row_block(a) * ROWS;
  int *index = state->index, *flag = state->flag;
  __syncthreads();
  if (a.splits > 1 && !merge_splits<ROWS>(a, state, &scratch->loss.last)) return;
  for (int r = tid; r < ROWS; r += kThreads) {
    if (flag[r] & kNonfinite) index[r] = 0;
    if (flag[r] == kCertain && !certain(state->score[r], state->second[r], state->error[r])) {
      flag[r] = kAmbiguous;
    }
  }
  __syncthreads();
  const int open_rows = a.certify ? list_open_rows<ROWS>(a, state, scratch) : 0;
  if (a.loss == nullptr) {
    for (int r = tid; r < ROWS; r += kThreads) {
      if (!(flag[r] & kOutside)) a.indices[first_row + r] = index[r];
    }
    return;
  }
  double squares = 0.0;
  int64_t rows = tid == 0 ? open_rows : 0;
  emit_rows<X, ROWS>(a, index, flag, [&](int r) { return first_row + r; }, &squares, &rows);
  squares = block_sum<kThreads>(squares, scratch->loss.squares);
  rows = block_sum<kThreads>(rows, scratch->loss.rows);
  if (tid == 0) {
    a.block_squares[row_block(a)] = squares;
    a.block_rows[row_block(a)] = rows;
  }
  // With a second pass the loss is written there.
  if (a.certify) return;
  if (is_last_block(a.ticket, static_cast<unsigned>(a.row_blocks), &scratch->loss.last)) {
    write_loss(a, &scratch->loss);
  }
}

// The flag of row n before the search knows more: whether it exists, counts and is finite.
__device__ inline int row_flag(const SearchArgs& a, int64_t n, bool nonfinite) {
  if (n >= a.rows) return kOutside;
  int flag = nonfinite ? kNonfinite : kCertain;
  if (a.mask != nullptr && a.mask[n] == 0) flag |= kMasked;
  return flag;
}

}  // namespace vq_cuda
