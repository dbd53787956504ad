// Search on the tensor cores with the rows of a block in shared memory: see mma_tiles.cuh.
//
// A block of 4 warps keeps its rows of x as 16-bit parts and streams the prepared codebook past them. With DEEP
// (D > 64) a tile of codes comes in several stages, whose sums are added in float32 if CHUNKED.
//
// Traffic: x once, the codebook's parts once a block, out of L2. Per (row, code) pair: PRODUCTS * D / 2048
// of an m16n8k16 instruction, one FFMA, and of instructions at half the rate one to clear bits and 2.5 or (before
// compute capability 9.0) 3 minima and maxima; half or one where the smallest score is enough; 5 with whole scores.
#pragma once

#include "search_streamed.cuh"

namespace vq_cuda {

template <int PRODUCTS, int ROWS>
inline int64_t matrix_shared_bytes(int64_t padded_dim) {
  constexpr int64_t kParts = PRODUCTS == 3 ? 2 : 1;
  using S = Stage<PRODUCTS>;
  const int64_t work = kParts * ROWS * (padded_dim + 8) * 2 + S::kCount * static_cast<int64_t>(sizeof(S));
  const int64_t end = finish_bytes();
  return static_cast<int64_t>(sizeof(MatrixRows<ROWS>)) + (work > end ? work : end);
}

// --- loading ---------------------------------------------------------------------------------------

template <typename T>
__device__ inline void store_row_octet(const SearchArgs& a, int d, const float (&v)[kOctet], float factor, bool zero,
                                       uint16_t* high, uint16_t*, RowMeasures<1>* m) {
  store_octet<T>(a.x, d, v, factor, zero, reinterpret_cast<unsigned char*>(high), m);
}
template <typename T>
__device__ inline void store_row_octet(const SearchArgs& a, int d, const float (&v)[kOctet], float factor, bool zero,
                                       uint16_t* high, uint16_t* low, RowMeasures<2>* m) {
  store_octet<T>(a.x, d, v, factor, zero, reinterpret_cast<unsigned char*>(high),
                 reinterpret_cast<unsigned char*>(low), m);
}

// Octets first, first + step, ... of one row: what is to be known before it can be scaled, then its parts. LANES
// threads share the row.
template <typename T, int LANES, int PARTS, int ROWS>
__device__ inline RowPowers load_row(const SearchArgs& a, const Extremes& extremes, int r, int lane, int pitch,
                                     const MatrixRows<ROWS>* rows, uint16_t* high, uint16_t* low,
                                     RowMeasures<PARTS>* m) {
  const bool counts = rows->state.flag[r] == kCertain;
  const int64_t offset = rows->offset[r];
  for (int d = lane * kOctet; d < a.dim && counts; d += LANES * kOctet) {
    float v[kOctet];
    load_octet(a.x, offset, d, v);
    m->look(a.x, d, v);
  }
  m->template join_lanes<LANES>();
  const RowPowers p = row_powers(a.bound, extremes, m->widest);
  for (int d = lane * kOctet; d < a.padded_dim; d += LANES * kOctet) {
    float v[kOctet] = {};
    if (counts && d < a.dim) load_octet(a.x, offset, d, v);
    store_row_octet<T>(a, d, v, p.row, !counts || m->nonfinite, high + r * pitch + d, low + r * pitch + d, m);
  }
  m->template join_sums<LANES>();
  return p;
}

// The same for rows of one octet a lane, several at a time, so that their loads are under way together. Returns the
// largest shift.
template <typename T, int PARTS, int CODE_PARTS, Epilogue EPILOGUE, int ROWS>
__device__ inline float load_short_rows(const SearchArgs& a, const Extremes& extremes, int pitch,
                                        MatrixRows<ROWS>* rows, uint16_t* high, uint16_t* low) {
  constexpr int kBatch = PARTS == 1 ? 4 : 2, kStep = kThreads / kRowLanes;
  const int lane = static_cast<int>(threadIdx.x) % kRowLanes, d = lane * kOctet;
  float shift = 0.0f;
  for (int first = static_cast<int>(threadIdx.x) / kRowLanes; first < ROWS; first += kBatch * kStep) {
    float v[kBatch][kOctet];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int r = first + i * kStep;
#pragma unroll
      for (int j = 0; j < kOctet; ++j) v[i][j] = 0.0f;
      if (d < a.dim && rows->state.flag[r] == kCertain) load_octet(a.x, rows->offset[r], d, v[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int r = first + i * kStep;
      RowMeasures<PARTS> m;
      m.look(a.x, d, v[i]);
      m.join_lanes();
      const RowPowers p = row_powers(a.bound, extremes, m.widest);
      const bool zero = rows->state.flag[r] != kCertain || m.nonfinite;
      if (d < a.padded_dim) {
        store_row_octet<T>(a, d, v[i], p.row, zero, high + r * pitch + d, low + r * pitch + d, &m);
      }
      m.join_sums();
      if (lane == 0) shift = fmaxf(shift, keep_row<PARTS, CODE_PARTS, EPILOGUE>(a, extremes, m, p, r, rows));
    }
  }
  return shift;
}

template <typename T, int PARTS, int CODE_PARTS, Epilogue EPILOGUE, bool DEEP, int ROWS>
__device__ inline void load_rows(const SearchArgs& a, int pitch, MatrixRows<ROWS>* rows, uint16_t* high,
                                 uint16_t* low) {
  const Extremes extremes = *a.extremes;
  const int tid = static_cast<int>(threadIdx.x);
  number_rows(a, rows);
  float shift = 0.0f;
  const auto keep = [&](int r, const RowMeasures<PARTS>& m, const RowPowers& p) {
    shift = fmaxf(shift, keep_row<PARTS, CODE_PARTS, EPILOGUE>(a, extremes, m, p, r, rows));
  };
  if (a.lanes_over_rows) {
    if (tid < ROWS) {
      RowMeasures<PARTS> m;
      const RowPowers p = load_row<T, 1>(a, extremes, tid, 0, pitch, rows, high, low, &m);
      keep(tid, m, p);
    }
  } else if (!DEEP) {
    shift = load_short_rows<T, PARTS, CODE_PARTS, EPILOGUE>(a, extremes, pitch, rows, high, low);
  } else {
    const int lane = tid % kRowLanes;
    for (int r = tid / kRowLanes; r < ROWS; r += kThreads / kRowLanes) {
      RowMeasures<PARTS> m;
      const RowPowers p = load_row<T, kRowLanes>(a, extremes, r, lane, pitch, rows, high, low, &m);
      if (lane == 0) keep(r, m, p);
    }
  }
  share_shift<EPILOGUE>(shift, rows);
  __syncthreads();
}

// --- the kernel --------------------------------------------------------------------------------------

// Blocks that a multiprocessor should hold: what registers (two sets of accumulators with CHUNKED) allow.
constexpr int blocks_per_processor(int products, bool chunked, int row_tiles) {
  return (chunked || products > 1) && row_tiles == 2 ? 2 : 3;
}

template <typename T, int PRODUCTS, Epilogue EPILOGUE, bool DEEP, bool CHUNKED, int ROW_TILES>
__global__ void __launch_bounds__(kThreads, blocks_per_processor(PRODUCTS, CHUNKED, ROW_TILES))
    search_mma_kernel(const __grid_constant__ SearchArgs a) {
  constexpr int kRows = 16 * ROW_TILES * kWarps, kParts = PRODUCTS == 3 ? 2 : 1, kCodeParts = PRODUCTS > 1 ? 2 : 1;
  constexpr int kStages = Stage<PRODUCTS>::kCount;
  const int pitch = a.padded_dim + 8;
  auto* rows = reinterpret_cast<MatrixRows<kRows>*>(dynamic_shared());
  auto* high = reinterpret_cast<uint16_t*>(rows + 1);  // [kRows, pitch]
  auto* low = kParts == 2 ? high + kRows * pitch : high;  // [kRows, pitch]
  auto* stages = reinterpret_cast<Stage<PRODUCTS>*>(low + kRows * pitch);
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16 * ROW_TILES;
  const int lane_row = warp_row + static_cast<int>(threadIdx.x) % kWarp / 4;
  begin_share(a, rows);
  for (unsigned number = blockIdx.x; number < rows->share.units; number += gridDim.x) {
    begin_unit(a, number, rows);
    const int steps = steps_of(rows->unit, a.padded_dim);
    StageWalk ahead{rows->unit.first_code, 0}, at = ahead;
    for (int step = 0; step < kStages - 1; ++step) {
      if (step < steps) load_stage<PRODUCTS>(a, ahead.code, ahead.dim, stages + step);
      copy_async_commit();
      ahead.advance(a.padded_dim);
    }
    load_rows<T, kParts, kCodeParts, EPILOGUE, DEEP>(a, pitch, rows, high, low);

    TileBests best[ROW_TILES];
    PackedHalves packed[ROW_TILES];
    Accumulator<ROW_TILES> total;  // with CHUNKED
    Accumulator<ROW_TILES> sum;
    const float* scales = rows->scale + lane_row;
    for (int step = 0; step < steps; ++step) {
      copy_async_wait<kStages - 2>();
      __syncthreads();  // the stage has arrived for all, and nobody reads the one before any more
      if (step + kStages - 1 < steps) {
        load_stage<PRODUCTS>(a, ahead.code, ahead.dim, stages + (step + kStages - 1) % kStages);
        ahead.advance(a.padded_dim);
      }
      copy_async_commit();
      const Stage<PRODUCTS>& stage = stages[step % kStages];
      if (CHUNKED || at.dim == 0) clear<ROW_TILES>(sum);
      const int from = warp_row * pitch + at.dim;
      multiply_stage<T, PRODUCTS, ROW_TILES>(sum, high + from, low + from, pitch, min(kChunk, a.padded_dim - at.dim),
                                             stage);
      if (CHUNKED) add_chunk<ROW_TILES>(total, sum, at.dim == 0);
      const int tile_code = at.code;
      at.advance(a.padded_dim);
      if (DEEP && at.dim != 0) continue;
      if (EPILOGUE == kWholeScores) {
        offer_tile<ROW_TILES>(best, CHUNKED ? total : sum, stage.bias, scales, tile_code);
      } else {
        offer_packed_tile<EPILOGUE == kPackedScores, ROW_TILES>(packed, CHUNKED ? total : sum, stage.bias, rows->shift,
                                                                scales, tile_code, rows->keep_bits);
      }
    }

#pragma unroll
    for (int i = 0; i < 2 * ROW_TILES; ++i) {
      const Best b = EPILOGUE == kWholeScores ? best[i / 2].half[i % 2]
                                              : unpacked(packed[i / 2].row[i % 2], rows->keep_bits, a.codes);
      keep_lanes_best(b, lane_row + 8 * i, &rows->state);
    }
    finish<kRows>(a, rows->unit.block, rows->unit.piece, rows->share.pieces, &rows->state,
                  reinterpret_cast<unsigned char*>(high));
  }
}

template <typename T, int PRODUCTS, Epilogue EPILOGUE, bool CHUNKED>
SearchKernel search_mma(const SearchPass& p) {
  if (p.streamed) return search_mma_streamed_kernel<T, PRODUCTS, EPILOGUE, CHUNKED>;
  if (!p.deep) return search_mma_kernel<T, PRODUCTS, EPILOGUE, false, false, 2>;
  return p.row_tiles == 2 ? search_mma_kernel<T, PRODUCTS, EPILOGUE, true, CHUNKED, 2>
                          : search_mma_kernel<T, PRODUCTS, EPILOGUE, true, CHUNKED, 1>;
}

}  // namespace vq_cuda
