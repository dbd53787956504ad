// What the tensor-core searches share: stages of prepared codes in shared memory, 16-bit m16n8k16 products
// with float32 accumulators, and the way of a warp's scores into the running bests.
//
// A stage is 64 codes by up to 64 dimensions, loaded with cp.async. A warp owns 16 * ROW_TILES rows and all 64
// codes, so that the epilogue needs no other warp. Codes are stored negated, so that a score is the bias times the
// row's scale plus what is accumulated.
//
//     PRODUCTS 1: x_high e_high                              the first pass, and 16-bit operands as they are
//     PRODUCTS 2: x e_low, then x e_high                     16-bit x, float32 codebook
//     PRODUCTS 3: x_high e_low, x_low e_high, then x_high e_high
//
// The small products come first, while the accumulator is small.
#pragma once

#include "finish.cuh"
#include "packed_best.cuh"

namespace vq_cuda {

constexpr int kStagePitch = kChunk + 8;  // elements; 16 bytes of padding make ldmatrix free of conflicts
constexpr int kColumnTiles = kTileCodes / 8;
constexpr int kColumnBits = 4;  // of the columns that a lane has in a tile
constexpr int kKeepBits = ~((1 << kColumnBits) - 1);

template <int PRODUCTS>
struct Stage {
  static constexpr int kCount = PRODUCTS == 1 ? 3 : 2;  // in shared memory at a time
  uint16_t high[kTileCodes * kStagePitch];
  uint16_t low[PRODUCTS > 1 ? kTileCodes * kStagePitch : 8];
  float bias[kTileCodes];
};

template <int ROWS>
struct __align__(16) MatrixRows {
  RowState<ROWS> state;
  Share share;  // of the pass: here rather than in registers, which the products need
  Unit unit;  // that the block is at
  int64_t offset[ROWS];
  float scale[ROWS];  // of the biases
  float factor[ROWS];  // of the row's own numbers
  float scratch[kWarps];
  float shift;  // added to all biases, so that the rows' scores are positive
  // What of a score's bits stays beside a column: by way of shared memory, or the assembler makes clearing and
  // setting bits two instructions.
  int keep_bits;
};

// --- what is known of a row before any product --------------------------------------------------------

// A block's share of the pass is begun with this, and each unit of it: nobody is at the one before any more.
template <int ROWS>
__device__ inline void begin_share(const SearchArgs& a, MatrixRows<ROWS>* rows) {
  if (threadIdx.x == 0) rows->share = share_of(a, ROWS);
  __syncthreads();
}
template <int ROWS>
__device__ inline void begin_unit(const SearchArgs& a, unsigned number, MatrixRows<ROWS>* rows) {
  __syncthreads();
  if (threadIdx.x == 0) rows->unit = unit_of(a, rows->share, number, ROWS);
  __syncthreads();
}

template <int ROWS>
__device__ inline void number_rows(const SearchArgs& a, MatrixRows<ROWS>* rows) {
  for (int r = static_cast<int>(threadIdx.x); r < ROWS; r += kThreads) {
    const int n = row_number(a, rows->unit, r);
    rows->state.number[r] = n;
    rows->state.flag[r] = n < 0 ? kOutside : a.mask != nullptr && a.mask[n] == 0 ? kMasked : kCertain;
    rows->offset[r] = n < 0 ? 0 : a.x.map.offset(n);
  }
  __syncthreads();
}

// Of a row that is measured. Returns what makes its scores positive, if they are to be.
template <int PARTS, int CODE_PARTS, Epilogue EPILOGUE, int ROWS>
__device__ inline float keep_row(const SearchArgs& a, const Extremes& extremes, const RowMeasures<PARTS>& m,
                                 const RowPowers& p, int r, MatrixRows<ROWS>* rows) {
  float shift = 0.0f, error = kInfinity;
  const int flag = rows->state.flag[r];
  if (flag == kCertain && m.nonfinite) rows->state.flag[r] = kNonfinite;
  if (flag == kCertain && !m.nonfinite && (p.in_range || !a.certify)) {
    error = scaled_error<PARTS, CODE_PARTS>(a.bound, extremes, a.x.centred, m, p.score, &shift);
  }
  rows->state.error[r] = error;
  rows->scale[r] = p.score;
  rows->factor[r] = p.row;
  const bool counts = EPILOGUE == kPackedScores ? error < kInfinity : shift < 0x1p80f;
  return EPILOGUE != kWholeScores && counts ? shift : 0.0f;
}

// The block's shift, and what it adds to the errors.
template <Epilogue EPILOGUE, int ROWS>
__device__ inline void share_shift(float shift, MatrixRows<ROWS>* rows) {
  if (EPILOGUE == kWholeScores) return;
  const int tid = static_cast<int>(threadIdx.x);
  shift = block_max<kThreads>(shift, rows->scratch);
  for (int r = tid; r < ROWS; r += kThreads) rows->state.error[r] += rows->scale[r] * shift * 0x1p-22f;
  if (tid == 0) {
    rows->shift = shift;
    rows->keep_bits = kKeepBits;
  }
}

// --- codes --------------------------------------------------------------------------------------------

template <int PRODUCTS>
__device__ inline void load_stage(const SearchArgs& a, int first_code, int first_dim, Stage<PRODUCTS>* s) {
  const int tid = static_cast<int>(threadIdx.x);
  const int width = min(kChunk, a.padded_dim - first_dim);
  const int pieces = width / 8;  // of 16 bytes, 2 to 8 a code
  for (int i = tid; i < kTileCodes * pieces; i += kThreads) {
    const int code = i / pieces, d = i % pieces * 8;
    const int64_t from = static_cast<int64_t>(first_code + code) * a.padded_dim + first_dim + d;
    copy_async16(s->high + code * kStagePitch + d, a.high + from);
    if (PRODUCTS > 1) copy_async16(s->low + code * kStagePitch + d, a.low + from);
  }
  if (tid < kTileCodes / 4) copy_async16(s->bias + 4 * tid, a.bias + first_code + 4 * tid);
}

__device__ inline int steps_of(const Unit& unit, int padded_dim) {
  return (unit.end_code - unit.first_code) / kTileCodes * ((padded_dim + kChunk - 1) / kChunk);
}

// The tiles of codes of a unit, in stages of 64 dimensions.
struct StageWalk {
  int code, dim;

  __device__ void advance(int padded_dim) {
    dim += kChunk;
    if (dim < padded_dim) return;
    dim = 0;
    code += kTileCodes;
  }
};

// --- products -----------------------------------------------------------------------------------------

template <int ROW_TILES>
using Accumulator = float[ROW_TILES][kColumnTiles][4];

// sum += x[16 * ROW_TILES rows, 16 dims] e[64 codes, 16 dims]^T for one part of each.
template <typename T, int ROW_TILES>
__device__ inline void multiply_step(Accumulator<ROW_TILES>& sum, const uint16_t* x, int x_pitch, const uint16_t* e) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  uint32_t rows[ROW_TILES][4];
#pragma unroll
  for (int t = 0; t < ROW_TILES; ++t) {
    load_matrix_x4(rows[t], x + (16 * t + lane % 16) * x_pitch + lane / 16 * 8);
  }
#pragma unroll
  for (int c = 0; c < kColumnTiles; c += 2) {
    uint32_t codes[4];
    load_matrix_x4(codes, e + (8 * c + lane % 8 + lane / 16 * 8) * kStagePitch + lane / 8 % 2 * 8);
#pragma unroll
    for (int t = 0; t < ROW_TILES; ++t) {
      multiply_16<T>(sum[t][c], rows[t], codes[0], codes[1]);
      multiply_16<T>(sum[t][c + 1], rows[t], codes[2], codes[3]);
    }
  }
}

template <typename T, int PRODUCTS, int ROW_TILES>
__device__ inline void multiply_stage(Accumulator<ROW_TILES>& sum, const uint16_t* high, const uint16_t* low, int pitch,
                                      int width, const Stage<PRODUCTS>& s) {
  if (PRODUCTS > 1) {
    for (int k = 0; k < width; k += 16) {
      multiply_step<T, ROW_TILES>(sum, high + k, pitch, s.low + k);
      if (PRODUCTS == 3) multiply_step<T, ROW_TILES>(sum, low + k, pitch, s.high + k);
    }
  }
  for (int k = 0; k < width; k += 16) multiply_step<T, ROW_TILES>(sum, high + k, pitch, s.high + k);
}

// Beyond kChunk dimensions each chunk is accumulated from zero and added in float32: the error bound then
// does not grow with D.
template <int ROW_TILES>
__device__ inline void add_chunk(Accumulator<ROW_TILES>& total, const Accumulator<ROW_TILES>& sum, bool first) {
#pragma unroll
  for (int t = 0; t < ROW_TILES; ++t) {
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) total[t][c][i] = first ? sum[t][c][i] : total[t][c][i] + sum[t][c][i];
    }
  }
}

template <int ROW_TILES>
__device__ inline void clear(Accumulator<ROW_TILES>& sum) {
#pragma unroll
  for (int t = 0; t < ROW_TILES; ++t) {
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[t][c][i] = 0.0f;
    }
  }
}

// --- scores -------------------------------------------------------------------------------------------

// What a lane keeps of its two rows in a tile of 16. No array of arrays: nvcc 13.0 initialises the first row
// of a two-dimensional array of such a class and leaves the others zero.
struct TileBests {
  Best half[2];
};

// The scores of a tile of codes; a lane has two columns of two rows in each 16 by 8 product. `scales` are those of
// the rows from the lane's first one on.
template <int ROW_TILES>
__device__ inline void offer_tile(TileBests (&best)[ROW_TILES], const Accumulator<ROW_TILES>& sums, const float* bias,
                                  const float* scales, int tile_code) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) {
    const int column = 8 * c + lane % 4 * 2;
    const float h[2] = {bias[column], bias[column + 1]};
#pragma unroll
    for (int t = 0; t < ROW_TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float score = fmaf(h[i % 2], scales[16 * t + 8 * (i / 2)], sums[t][c][i]);
        best[t].half[i / 2].offer(score, tile_code + column + i % 2);
      }
    }
  }
}

template <bool EXACT, int ROW_TILES>
__device__ inline void offer_packed_tile(PackedHalves (&best)[ROW_TILES], const Accumulator<ROW_TILES>& sums,
                                         const float* bias, float shift, const float* scales, int tile_code, int mask) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int low[2 * ROW_TILES], second[2 * ROW_TILES];
#pragma unroll
  for (int i = 0; i < 2 * ROW_TILES; ++i) low[i] = second[i] = 0x7fffffff;
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) {
    const float2 h = reinterpret_cast<const float2*>(bias)[4 * c + lane % 4];
    const float even = h.x + shift, odd = h.y + shift;
#pragma unroll
    for (int i = 0; i < 2 * ROW_TILES; ++i) {
      const float scale = scales[8 * i];
      const float* product = sums[i / 2][c] + 2 * (i % 2);
      join_packed<EXACT>(packed_score(even, scale, product[0], mask, 2 * c),
                         packed_score(odd, scale, product[1], mask, 2 * c + 1), low[i], second[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * ROW_TILES; ++i) {
    offer_packed<EXACT>(best[i / 2].row[i % 2], low[i], second[i], tile_code, mask);
  }
}

// The best of a row's columns of a lane, as other lanes and blocks compare it.
__device__ inline Best unpacked(const PackedBest& best, int mask, int codes) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, column = best.value & ~mask;
  Best b;
  b.score = __uint_as_float(static_cast<unsigned>(best.value & mask));
  b.second = __uint_as_float(static_cast<unsigned>(best.second & mask));
  b.index = best.tile + column / 2 * 8 + lane % 4 * 2 + column % 2;
  if (b.index >= codes) b.index = 0;
  return b;
}

// The four lanes that share a row bring what each found; r is the first of a lane's rows, 8 apart.
template <int ROWS>
__device__ inline void keep_lanes_best(Best b, int r, RowState<ROWS>* state) {
  b.merge_lanes(1);
  b.merge_lanes(2);
  if (static_cast<int>(threadIdx.x) % 4 == 0) keep_best(state, r, b);
}

}  // namespace vq_cuda
