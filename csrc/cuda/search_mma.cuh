// Search on the tensor cores with the rows of a block in shared memory: see mma_tiles.cuh.
//
// A block of 4 warps keeps its rows of x as bfloat16 parts and streams the prepared codebook past them,
// double-buffered. With DEEP (D > 64) sums of 64 dimensions are added in float32.
//
// Traffic: x once, the codebook's parts once a block, out of L2. Per (row, code) pair: PRODUCTS * D / 2048
// of an m16n8k16 instruction and an epilogue of 6 instructions (CERTIFY) or 4.
#pragma once

#include "search_streamed.cuh"

namespace vq_cuda {

template <int PRODUCTS, int ROWS>
inline int64_t matrix_shared_bytes(int64_t padded_dim) {
  const int64_t parts = PRODUCTS == 3 ? 2 : 1;
  const int64_t work =
      parts * ROWS * (padded_dim + 8) * 2 + 2 * static_cast<int64_t>(sizeof(Stage<PRODUCTS>));
  const int64_t end = finish_bytes();
  return static_cast<int64_t>(sizeof(MatrixRows<ROWS>)) + (work > end ? work : end);
}

// --- loading ---------------------------------------------------------------------------------------

template <int PRODUCTS>
__device__ inline void store_parts(const SearchArgs& a, float value, int r, int d, int pitch,
                                   __nv_bfloat16* high, __nv_bfloat16* low, int* nonfinite) {
  if (!is_finite(value)) atomicOr(nonfinite + r, 1);
  if (a.shift_rows && d < a.dim) value -= a.centre[d];
  const __nv_bfloat16 part = __float2bfloat16_rn(value);
  high[r * pitch + d] = part;
  if (PRODUCTS == 3) low[r * pitch + d] = __float2bfloat16_rn(value - to_float(part));
}

template <typename X, int PRODUCTS, int ROWS>
__device__ inline void load_rows(const SearchArgs& a, int64_t first_row, int pitch, MatrixRows<ROWS>* rows,
                                 __nv_bfloat16* high, __nv_bfloat16* low) {
  const X* x = static_cast<const X*>(a.x);
  const int tid = static_cast<int>(threadIdx.x);
  for (int r = tid; r < ROWS; r += kThreads) {
    rows->offset[r] = first_row + r < a.rows ? a.x_map.offset(first_row + r) : 0;
    rows->nonfinite[r] = 0;
  }
  __syncthreads();
  const int64_t present = a.rows - first_row;
  // Loads first, then stores: so many are under way at a time.
  constexpr int kBatch = 8;
  const bool by_row = a.lanes_over_rows;
  const int dim = a.dim;
  const int64_t x_step = a.x_map.strides.dim;
  if (by_row) {
    const int r = tid % ROWS;
    const X* row = x + rows->offset[r];
    for (int d0 = tid / ROWS; d0 < a.padded_dim; d0 += kBatch * (kThreads / ROWS)) {
      float value[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int d = d0 + i * (kThreads / ROWS);
        value[i] = r < present && d < dim ? to_float(row[d * x_step]) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int d = d0 + i * (kThreads / ROWS);
        if (d < a.padded_dim) store_parts<PRODUCTS>(a, value[i], r, d, pitch, high, low, rows->nonfinite);
      }
    }
  } else {
    for (int d = tid % kWarp; d < a.padded_dim; d += kWarp) {
      for (int r0 = tid / kWarp; r0 < ROWS; r0 += kBatch * kWarps) {
        float value[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int r = r0 + i * kWarps;
          value[i] = r < present && d < dim ? to_float(x[rows->offset[r] + d * x_step]) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          store_parts<PRODUCTS>(a, value[i], r0 + i * kWarps, d, pitch, high, low, rows->nonfinite);
        }
      }
    }
  }
  __syncthreads();
}

// Error bounds and flags, one thread a row.
template <int PRODUCTS, int ROWS>
__device__ inline void measure_rows(const SearchArgs& a, int64_t first_row, int pitch, const Extent& extent,
                                    MatrixRows<ROWS>* rows, const __nv_bfloat16* high,
                                    const __nv_bfloat16* low) {
  for (int r = static_cast<int>(threadIdx.x); r < ROWS; r += kThreads) {
    float squares = 0.0f, low_squares = 0.0f;
    for (int d = 0; d < a.padded_dim; ++d) {
      const float part = to_float(high[r * pitch + d]);
      const float rest = PRODUCTS == 3 ? to_float(low[r * pitch + d]) : 0.0f;
      squares = fmaf(part + rest, part + rest, squares);
      low_squares = fmaf(rest, rest, low_squares);
    }
    rows->state.error[r] = parts_error<PRODUCTS>(a, extent, squares, low_squares);
    rows->state.flag[r] = row_flag(a, first_row + r, rows->nonfinite[r] != 0);
  }
}

// --- the kernel --------------------------------------------------------------------------------------

// Blocks that a multiprocessor should hold: what registers (two sets of accumulators with DEEP) and,
// with three products, shared memory allow without spills.
constexpr int blocks_per_processor(bool certify, bool deep, int row_tiles) {
  return deep && row_tiles == 2 ? 2 : certify ? 3 : 4;
}

template <typename X, int PRODUCTS, bool CERTIFY, bool DEEP, int ROW_TILES>
__global__ void __launch_bounds__(kThreads, blocks_per_processor(CERTIFY, DEEP, ROW_TILES))
    search_mma_kernel(const __grid_constant__ SearchArgs a) {
  constexpr int kRows = 16 * ROW_TILES * kWarps;
  const int pitch = a.padded_dim + 8;
  auto* rows = reinterpret_cast<MatrixRows<kRows>*>(dynamic_shared());
  auto* high = reinterpret_cast<__nv_bfloat16*>(rows + 1);  // [kRows, pitch]
  auto* low = PRODUCTS == 3 ? high + kRows * pitch : high;  // [kRows, pitch]
  auto* stages = reinterpret_cast<Stage<PRODUCTS>*>(low + kRows * pitch);
  const int64_t first_row = row_block(a) * kRows;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;

  int tile_code = first_code(a), first_dim = 0;
  load_stage<PRODUCTS>(a, tile_code, 0, stages);
  load_rows<X, PRODUCTS, kRows>(a, first_row, pitch, rows, high, low);
  measure_rows<PRODUCTS, kRows>(a, first_row, pitch, extent_of_codes(a), rows, high, low);

  const int chunks = DEEP ? (a.padded_dim + kChunk - 1) / kChunk : 1;
  const int steps = (end_code(a) - tile_code) / kTileCodes * chunks;
  const int warp_row = 16 * ROW_TILES * warp;
  TileBests best[ROW_TILES];
  Accumulator<ROW_TILES> total;
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<0>();
    __syncthreads();  // the stage has arrived for all, and nobody reads the other one any more
    const int next_dim = first_dim + kChunk < a.padded_dim ? first_dim + kChunk : 0;
    const int next_code = next_dim == 0 ? tile_code + kTileCodes : tile_code;
    if (step + 1 < steps) load_stage<PRODUCTS>(a, next_code, next_dim, stages + (step + 1) % 2);

    const Stage<PRODUCTS>& stage = stages[step % 2];
    Accumulator<ROW_TILES> sum = {};
    const __nv_bfloat16* x_high = high + warp_row * pitch + first_dim;
    const __nv_bfloat16* x_low = low + warp_row * pitch + first_dim;
    multiply_stage<PRODUCTS, ROW_TILES>(sum, x_high, x_low, pitch, min(kChunk, a.padded_dim - first_dim),
                                        stage);
    if (DEEP) add_chunk<ROW_TILES>(total, sum, first_dim == 0);
    if (!DEEP || next_dim == 0) {
      offer_tile<CERTIFY, ROW_TILES>(best, DEEP ? total : sum, stage.bias, tile_code);
    }
    first_dim = next_dim;
    tile_code = next_code;
  }

  keep_tile_bests<kRows, ROW_TILES>(best, warp_row, &rows->state);
  finish<X, kRows>(a, &rows->state, reinterpret_cast<unsigned char*>(high));
}

template <typename X, int PRODUCTS, bool CERTIFY>
SearchKernel search_mma(const SearchPlan& p) {
  if (p.streamed) return search_mma_streamed_kernel<X, PRODUCTS, CERTIFY>;
  if (!p.deep) return search_mma_kernel<X, PRODUCTS, CERTIFY, false, 2>;
  return p.row_tiles == 2 ? search_mma_kernel<X, PRODUCTS, CERTIFY, true, 2>
                          : search_mma_kernel<X, PRODUCTS, CERTIFY, true, 1>;
}

}  // namespace vq_cuda
