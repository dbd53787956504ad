// What the tensor-core searches share: stages of prepared codes in shared memory, bfloat16 m16n8k16 products
// with float32 accumulators, and the way of a warp's scores into the running bests.
//
// A stage is 64 codes by up to 64 dimensions, loaded with cp.async. A warp owns 16 * ROW_TILES rows and all 64
// codes, so that the epilogue needs no other warp.
//
//     PRODUCTS 1: x_high e_high                              "fast"; exact inputs if both are bfloat16
//     PRODUCTS 2: x e_low, then x e_high                     bfloat16 x, float32 codebook
//     PRODUCTS 3: x_high e_low, x_low e_high, then x_high e_high
//
// The small products come first, while the accumulator is small.
#pragma once

#include "finish.cuh"

namespace vq_cuda {

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

// The bound of a row's scores from the float32 sums of squares of both its parts and of the low one alone.
template <int PRODUCTS>
__device__ inline float parts_error(const SearchArgs& a, const Extent& extent, float squares,
                                    float low_squares) {
  const float x_low = PRODUCTS == 3 ? norm_bound(a.factors, low_squares) : 0.0f;
  // The part beyond high and low is at most 2^-8 of the low one.
  const float x_norm = norm_bound(a.factors, squares) + 0x1.04p-8f * x_low;
  return score_error(a.factors, extent, x_norm, x_low);
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

// What a lane keeps of its two rows in a tile of 16. No array of arrays: nvcc 13.0 initialises the first row
// of a two-dimensional array of such a class and leaves the others zero.
struct TileBests {
  Best half[2];
};

// The scores of a tile of codes; a lane has two columns of two rows in each 16 by 8 product.
template <bool CERTIFY, int ROW_TILES>
__device__ inline void offer_tile(TileBests (&best)[ROW_TILES], const Accumulator<ROW_TILES>& products,
                                  const float* bias, int tile_code) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) {
    const int column = 8 * c + lane % 4 * 2;
    const float h[2] = {bias[column], bias[column + 1]};
#pragma unroll
    for (int t = 0; t < ROW_TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        best[t].half[i / 2].template offer<CERTIFY>(h[i % 2] - products[t][c][i], tile_code + column + i % 2);
      }
    }
  }
}

// The four lanes that share a row bring what each found; warp_row is the warp's first row.
template <int ROWS, int ROW_TILES>
__device__ inline void keep_tile_bests(TileBests (&best)[ROW_TILES], int warp_row, RowState<ROWS>* state) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int t = 0; t < ROW_TILES; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Best& b = best[t].half[half];
      b.merge_lanes(1);
      b.merge_lanes(2);
      if (lane % 4 == 0) keep_best(state, warp_row + 16 * t + 8 * half + lane / 4, b);
    }
  }
}

}  // namespace vq_cuda
