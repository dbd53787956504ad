// Search on the tensor cores: bfloat16 m16n8k16 products with float32 accumulators.
//
// A block of 4 warps keeps its rows of x in shared memory as bfloat16 parts and streams the prepared
// codebook past them, 64 codes by up to 64 dimensions at a time, double-buffered with cp.async. A warp
// owns 16 * ROW_TILES rows and all 64 codes, so that the epilogue needs no other warp.
//
//     PRODUCTS 1: x_high e_high                              "fast"; exact inputs if both are bfloat16
//     PRODUCTS 2: x e_low, then x e_high                     bfloat16 x, float32 codebook
//     PRODUCTS 3: x_high e_low, x_low e_high, then x_high e_high
//
// The small products come first, while the accumulator is small. With DEEP (D > 64) each 64 dimensions
// are accumulated from zero and added in float32: the error bound then does not grow with D.
//
// Traffic: x once, the codebook's parts once a block, out of L2. Per (row, code) pair: PRODUCTS * D / 2048
// of an m16n8k16 instruction and an epilogue of 6 instructions (CERTIFY) or 4.
#pragma once

#include "finish.cuh"

namespace vq_cuda {

constexpr int kChunk = 64;  // dimensions in a stage
constexpr int kStagePitch = kChunk + 8;  // elements; 16 bytes of padding make ldmatrix free of conflicts
constexpr int kColumnTiles = kTileCodes / 8;

template <int PRODUCTS>
struct Stage {
  __nv_bfloat16 high[kTileCodes * kStagePitch];
  __nv_bfloat16 low[PRODUCTS > 1 ? kTileCodes * kStagePitch : 8];
  float bias[kTileCodes];
};

template <int ROWS>
struct MatrixRows {
  int64_t offset[ROWS];
  RowState<ROWS> state;
  int nonfinite[ROWS];
};

template <int PRODUCTS, int ROWS>
inline int64_t matrix_shared_bytes(int64_t dim, int64_t padded_dim) {
  const int64_t parts = PRODUCTS == 3 ? 2 : 1;
  const int64_t work =
      parts * ROWS * (padded_dim + 8) * 2 + 2 * static_cast<int64_t>(sizeof(Stage<PRODUCTS>));
  const int64_t end = finish_bytes(dim);
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
    const float x_low = PRODUCTS == 3 ? norm_bound(a, low_squares) : 0.0f;
    // The part beyond high and low is at most 2^-8 of the low one.
    const float x_norm = norm_bound(a, squares) + 0x1.04p-8f * x_low;
    rows->state.error[r] = score_error(a, extent, x_norm, x_low);
    rows->state.flag[r] = row_flag(a, first_row + r, rows->nonfinite[r] != 0);
  }
}

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
  copy_async_commit();
}

// --- multiplying -------------------------------------------------------------------------------------

template <int ROW_TILES>
using Accumulator = float[ROW_TILES][kColumnTiles][4];

// sum += x[16 * ROW_TILES rows, 16 dims] e[64 codes, 16 dims]^T for one part of each.
template <int ROW_TILES>
__device__ inline void multiply_step(Accumulator<ROW_TILES>& sum, const __nv_bfloat16* x, int x_pitch,
                                     const __nv_bfloat16* e) {
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
      mma_bf16(sum[t][c], rows[t], codes[0], codes[1]);
      mma_bf16(sum[t][c + 1], rows[t], codes[2], codes[3]);
    }
  }
}

template <int PRODUCTS, int ROW_TILES>
__device__ inline void multiply_stage(Accumulator<ROW_TILES>& sum, const __nv_bfloat16* high,
                                      const __nv_bfloat16* low, int pitch, int width,
                                      const Stage<PRODUCTS>& s) {
  if (PRODUCTS > 1) {
    for (int k = 0; k < width; k += 16) {
      multiply_step<ROW_TILES>(sum, high + k, pitch, s.low + k);
      if (PRODUCTS == 3) multiply_step<ROW_TILES>(sum, low + k, pitch, s.high + k);
    }
  }
  for (int k = 0; k < width; k += 16) multiply_step<ROW_TILES>(sum, high + k, pitch, s.high + k);
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
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp, lane = tid % kWarp;

  int tile_code = first_code(a), first_dim = 0;
  load_stage<PRODUCTS>(a, tile_code, 0, stages);
  // The second stage is not in use yet and lends its room.
  const Extent extent = reduce_extents<kThreads>(a, reinterpret_cast<float*>(stages + 1));
  load_rows<X, PRODUCTS, kRows>(a, first_row, pitch, rows, high, low);
  measure_rows<PRODUCTS, kRows>(a, first_row, pitch, extent, rows, high, low);

  const int chunks = DEEP ? (a.padded_dim + kChunk - 1) / kChunk : 1;
  const int steps = (end_code(a) - tile_code) / kTileCodes * chunks;
  const int warp_row = 16 * ROW_TILES * warp;
  Best best[ROW_TILES][2];
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
    if (DEEP) {
#pragma unroll
      for (int t = 0; t < ROW_TILES; ++t) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            total[t][c][i] = first_dim == 0 ? sum[t][c][i] : total[t][c][i] + sum[t][c][i];
          }
        }
      }
    }
    if (!DEEP || next_dim == 0) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const int column = 8 * c + lane % 4 * 2;
        const float h[2] = {stage.bias[column], stage.bias[column + 1]};
#pragma unroll
        for (int t = 0; t < ROW_TILES; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float s = h[i % 2] - (DEEP ? total[t][c][i] : sum[t][c][i]);
            best[t][i / 2].template offer<CERTIFY>(s, tile_code + column + i % 2);
          }
        }
      }
    }
    first_dim = next_dim;
    tile_code = next_code;
  }

#pragma unroll
  for (int t = 0; t < ROW_TILES; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Best& b = best[t][half];
      b.merge_lanes(1);
      b.merge_lanes(2);
      if (lane % 4 == 0) keep_best(&rows->state, warp_row + 16 * t + 8 * half + lane / 4, b);
    }
  }
  finish<X, kRows>(a, &rows->state, reinterpret_cast<unsigned char*>(high));
}

template <typename X, int PRODUCTS, bool CERTIFY>
cudaError_t launch_search_mma(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream) {
  const auto run = [&](void (*kernel)(SearchArgs)) {
    return launch(kernel, search_blocks(a, p), kThreads, p.shared_bytes, stream, false, a);
  };
  if (a.padded_dim <= kChunk) return run(search_mma_kernel<X, PRODUCTS, CERTIFY, false, 2>);
  if (p.row_tiles == 2) return run(search_mma_kernel<X, PRODUCTS, CERTIFY, true, 2>);
  return run(search_mma_kernel<X, PRODUCTS, CERTIFY, true, 1>);
}

}  // namespace vq_cuda
