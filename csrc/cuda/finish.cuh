// The end of every search kernel: rows that the certificate leaves open are listed for the next pass
// (search_mma.cuh or resolve.cu); the others get their indices, and for the fused step their quantized rows, squared
// errors and share of the statistics, while x and the codes are still in cache.
#pragma once

#include "emit.cuh"

namespace vq_cuda {

// What a kernel knows of its rows when it has seen its codes, in shared memory.
template <int ROWS>
struct RowState {
  int number[ROWS];  // of the batch, -1 beyond the last
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

// How a pass is divided: units of work are a block of rows and a piece of the codes.
struct Share {
  unsigned rows, row_blocks, pieces, units;
  int piece_codes;
};

// Of all rows as planned; of listed ones as many blocks of this grid as there are rows, and pieces for those of them
// that would be idle. Beyond two waves of blocks of rows pieces gain little, and their bests take memory.
__device__ inline Share share_of(const SearchArgs& a, int block_rows) {
  if (a.from.rows == nullptr) {
    const unsigned blocks = static_cast<unsigned>(a.row_blocks), pieces = static_cast<unsigned>(a.splits);
    return Share{static_cast<unsigned>(a.rows), blocks, pieces, blocks * pieces, a.split_codes};
  }
  const unsigned rows = __ldcg(a.from.count), width = static_cast<unsigned>(block_rows);
  const unsigned blocks = (rows + width - 1) / width, tiles = static_cast<unsigned>(a.padded_codes / kTileCodes);
  Division division{1, tiles};
  if (blocks > 0 && blocks <= 2 * gridDim.x) division = divide_codes(blocks, tiles, gridDim.x);
  return Share{rows, blocks, division.pieces, blocks * division.pieces,
               static_cast<int>(division.piece_tiles) * kTileCodes};
}

struct Unit {
  unsigned block, piece;
  unsigned first_row;
  int rows;  // at most a block's
  int first_code, end_code;
};

__device__ inline Unit unit_of(const SearchArgs& a, const Share& share, unsigned number, int block_rows) {
  const unsigned block = number / share.pieces, piece = number % share.pieces;
  const unsigned first_row = block * static_cast<unsigned>(block_rows);
  const int first_code = static_cast<int>(piece) * share.piece_codes;
  const unsigned left = share.rows - min(share.rows, first_row);
  return Unit{block, piece, first_row, static_cast<int>(min(left, static_cast<unsigned>(block_rows))), first_code,
              min(first_code + share.piece_codes, a.padded_codes)};
}

// Number in the batch of the unit's row r, -1 beyond its last.
__device__ inline int row_number(const SearchArgs& a, const Unit& unit, int r) {
  if (r >= unit.rows) return -1;
  const unsigned at = unit.first_row + static_cast<unsigned>(r);
  return a.from.rows != nullptr ? a.from.rows[at] : static_cast<int>(at);
}

struct FinishScratch {
  LossScratch loss;
  unsigned long long squares[kSquareSums];
  int open_rows[kSmallBlockRows / kWarp];  // of each warp's rows
  unsigned first_open;
};

inline int64_t finish_bytes() {
  return static_cast<int64_t>(sizeof(FinishScratch));
}

// Lists the open rows, with the best code so far as a hint in indices, and takes them out of this block's hands.
// Returns how many there are.
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
  if (total == 0) return 0;
  if (tid == 0) scratch->first_open = atomicAdd(a.to.count, static_cast<unsigned>(total));
  __syncthreads();
  int32_t* list = a.to.rows + scratch->first_open;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int r = part * kThreads + tid;
    if (r >= ROWS || !(votes[part] >> lane & 1u)) continue;
    int place = __popc(votes[part] & ((1u << lane) - 1u));
    for (int w = 0; w < r / kWarp; ++w) place += scratch->open_rows[w];
    list[place] = state->number[r];
    a.indices[state->number[r]] = state->index[r];
    state->flag[r] = kOutside;
  }
  __syncthreads();
  return total;
}

// Merges the bests of the units that share these rows; false for all but the last to arrive.
template <int ROWS>
__device__ bool merge_pieces(const SearchArgs& a, unsigned block, unsigned piece, unsigned pieces,
                             RowState<ROWS>* rows, int* last) {
  Best* partial = a.partial + static_cast<int64_t>(block) * pieces * ROWS;
  for (int r = static_cast<int>(threadIdx.x); r < ROWS; r += kThreads) {
    Best best;
    best.score = rows->score[r];
    best.second = rows->second[r];
    best.index = rows->index[r];
    partial[static_cast<int64_t>(piece) * ROWS + r] = best;
  }
  if (!is_last_block(a.split_tickets + block, pieces, last)) return false;
  for (int r = static_cast<int>(threadIdx.x); r < ROWS; r += kThreads) {
    Best best;
    for (unsigned i = 0; i < pieces; ++i) {
      const Best* other = partial + static_cast<int64_t>(i) * ROWS + r;
      best.merge(__ldcg(&other->score), __ldcg(&other->second), __ldcg(&other->index));
    }
    keep_best(rows, r, best);
  }
  __syncthreads();
  return true;
}

// What the rows of the unit give beside their indices. Rows that were listed are counted by who listed them.
template <typename X, int ROWS>
__device__ inline void finish_rows(const SearchArgs& a, unsigned block, int open_rows, RowState<ROWS>* state,
                                   FinishScratch* scratch) {
  const int tid = static_cast<int>(threadIdx.x);
  const auto number = [&](int r) { return static_cast<int64_t>(state->number[r]); };
  double squares = 0.0;
  int64_t rows = tid == 0 ? open_rows : 0;
  if (a.from.rows != nullptr) {
    if (tid < kSquareSums) scratch->squares[tid] = 0;
    __syncthreads();
    emit_rows<X, ROWS>(a, state->index, state->flag, number, &squares, &rows, scratch->squares);
    __syncthreads();
    if (tid < kSquareSums && scratch->squares[tid] != 0) atomicAdd(a.open_squares + tid, scratch->squares[tid]);
    return;
  }
  emit_rows<X, ROWS>(a, state->index, state->flag, number, &squares, &rows, nullptr);
  squares = block_sum<kThreads>(squares, scratch->loss.squares);
  rows = block_sum<kThreads>(rows, scratch->loss.rows);
  if (tid == 0) {
    a.block_squares[block] = squares;
    a.block_rows[block] = rows;
  }
}

// Of a unit of work, with finish_bytes() of shared memory that are free to use. Not inlined: it is the last thing every
// kernel does, so that a call costs nothing and saves a copy of it in each.
template <int ROWS>
__device__ __noinline__ void finish(const SearchArgs& a, unsigned block, unsigned piece, unsigned pieces,
                                    RowState<ROWS>* state, unsigned char* scratch_bytes) {
  FinishScratch* scratch = reinterpret_cast<FinishScratch*>(scratch_bytes);
  const int tid = static_cast<int>(threadIdx.x);
  int *index = state->index, *flag = state->flag;
  __syncthreads();
  if (pieces > 1 && !merge_pieces<ROWS>(a, block, piece, pieces, state, &scratch->loss.last)) return;
  for (int r = tid; r < ROWS; r += kThreads) {
    if (flag[r] & kNonfinite) index[r] = 0;
    if (flag[r] == kCertain && !certain(state->score[r], state->second[r], state->error[r], a.packing)) {
      flag[r] = kAmbiguous;
    }
  }
  __syncthreads();
  const int open_rows = a.certify ? list_open_rows<ROWS>(a, state, scratch) : 0;
  if (a.loss == nullptr) {
    for (int r = tid; r < ROWS; r += kThreads) {
      if (!(flag[r] & kOutside)) a.indices[state->number[r]] = index[r];
    }
    return;
  }
  switch (a.x.dtype) {
    case VQ_FLOAT32:
      finish_rows<float, ROWS>(a, block, open_rows, state, scratch);
      break;
    case VQ_BFLOAT16:
      finish_rows<__nv_bfloat16, ROWS>(a, block, open_rows, state, scratch);
      break;
    default:
      finish_rows<__half, ROWS>(a, block, open_rows, state, scratch);
  }
  // With more passes the loss is written by the last of them.
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
