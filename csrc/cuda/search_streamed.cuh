// Search on the tensor cores for rows so long that no block of them fits into shared memory (mma_tiles.cuh).
//
// The rows' chunks come along with the codes': both in stages of 64 dimensions, double-buffered. x is loaded
// into registers while the stage before is multiplied, and split into bfloat16 parts after that.
//
// Traffic out of L2: the codebook's parts once a block, x once for every 64 codes.
#pragma once

#include "mma_tiles.cuh"

namespace vq_cuda {

constexpr int kStreamedRows = 16 * kWarps;
constexpr int kStreamedLoads = kStreamedRows * kChunk / kThreads;  // values of a chunk that a thread takes

template <int PRODUCTS>
struct StreamedStage {
  Stage<PRODUCTS> codes;
  __nv_bfloat16 high[kStreamedRows * kStagePitch];
  __nv_bfloat16 low[PRODUCTS == 3 ? kStreamedRows * kStagePitch : 8];
};

template <int PRODUCTS>
inline int64_t streamed_shared_bytes() {
  const int64_t stages = 2 * static_cast<int64_t>(sizeof(StreamedStage<PRODUCTS>));
  return static_cast<int64_t>(sizeof(MatrixRows<kStreamedRows>)) + stages;
}

// Row and dimension of a thread's i-th value: neighbouring threads read neighbours in memory.
struct ChunkPlace {
  int row, dim;

  __device__ ChunkPlace(bool lanes_over_rows, int i) {
    const int tid = static_cast<int>(threadIdx.x);
    row = lanes_over_rows ? tid % kStreamedRows : tid / kWarp + kWarps * (i / 2);
    dim = lanes_over_rows ? tid / kStreamedRows + kThreads / kStreamedRows * i : tid % kWarp + kWarp * (i % 2);
  }
};

template <typename X>
__device__ inline void load_chunk(const SearchArgs& a, const MatrixRows<kStreamedRows>* rows, int64_t present,
                                  int first_dim, float (&value)[kStreamedLoads]) {
  const X* x = static_cast<const X*>(a.x);
#pragma unroll
  for (int i = 0; i < kStreamedLoads; ++i) {
    const ChunkPlace at(a.lanes_over_rows, i);
    const int d = first_dim + at.dim;
    const bool inside = at.row < present && d < a.dim;
    value[i] = inside ? to_float(x[rows->offset[at.row] + d * a.x_map.strides.dim]) : 0.0f;
  }
}

template <int PRODUCTS>
__device__ inline void store_chunk(const SearchArgs& a, int first_dim, const float (&value)[kStreamedLoads],
                                   StreamedStage<PRODUCTS>* stage) {
#pragma unroll
  for (int i = 0; i < kStreamedLoads; ++i) {
    const ChunkPlace at(a.lanes_over_rows, i);
    const int d = first_dim + at.dim;
    const float shifted = a.shift_rows && d < a.dim ? value[i] - a.centre[d] : value[i];
    const __nv_bfloat16 high = __float2bfloat16_rn(shifted);
    stage->high[at.row * kStagePitch + at.dim] = high;
    if (PRODUCTS == 3) {
      stage->low[at.row * kStagePitch + at.dim] = __float2bfloat16_rn(shifted - to_float(high));
    }
  }
}

// Offsets, flags and error bounds of the block's rows, one warp a row.
template <typename X, int PRODUCTS>
__device__ inline void measure_streamed_rows(const SearchArgs& a, int64_t first_row, const Extent& extent,
                                             MatrixRows<kStreamedRows>* rows) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < kStreamedRows; r += kWarps) {
    const int64_t n = first_row + r, offset = n < a.rows ? a.x_map.offset(n) : 0;
    const X* x = static_cast<const X*>(a.x) + offset;
    float squares = 0.0f, low_squares = 0.0f;
    bool finite = true;
    for (int d = lane; d < a.dim && n < a.rows; d += kWarp) {
      const float value = to_float(x[d * a.x_map.strides.dim]);
      finite = finite && is_finite(value);
      const float shifted = a.shift_rows ? value - a.centre[d] : value;
      const float high = to_float(__float2bfloat16_rn(shifted));
      const float low = PRODUCTS == 3 ? to_float(__float2bfloat16_rn(shifted - high)) : 0.0f;
      squares = fmaf(high + low, high + low, squares);
      low_squares = fmaf(low, low, low_squares);
    }
    squares = warp_sum(squares);
    low_squares = warp_sum(low_squares);
    finite = __all_sync(kAllLanes, finite);
    if (lane != 0) continue;
    rows->offset[r] = offset;
    rows->state.error[r] = parts_error<PRODUCTS>(a, extent, squares, low_squares);
    rows->state.flag[r] = row_flag(a, n, !finite);
  }
}

template <typename X, int PRODUCTS, bool CERTIFY>
__global__ void __launch_bounds__(kThreads, 2)
    search_mma_streamed_kernel(const __grid_constant__ SearchArgs a) {
  auto* rows = reinterpret_cast<MatrixRows<kStreamedRows>*>(dynamic_shared());
  auto* stages = reinterpret_cast<StreamedStage<PRODUCTS>*>(rows + 1);
  const int64_t first_row = row_block(a) * kStreamedRows, present = a.rows - first_row;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;

  int tile_code = first_code(a), first_dim = 0;
  measure_streamed_rows<X, PRODUCTS>(a, first_row, extent_of_codes(a), rows);
  __syncthreads();
  load_stage<PRODUCTS>(a, tile_code, 0, &stages[0].codes);
  float value[kStreamedLoads];
  load_chunk<X>(a, rows, present, 0, value);
  store_chunk<PRODUCTS>(a, 0, value, stages);

  const int chunks = (a.padded_dim + kChunk - 1) / kChunk;
  const int steps = (end_code(a) - tile_code) / kTileCodes * chunks;
  TileBests best[1];
  Accumulator<1> total;
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<0>();
    __syncthreads();  // the stage has arrived for all, and nobody reads the other one any more
    const int next_dim = first_dim + kChunk < a.padded_dim ? first_dim + kChunk : 0;
    const int next_code = next_dim == 0 ? tile_code + kTileCodes : tile_code;
    StreamedStage<PRODUCTS>& next = stages[(step + 1) % 2];
    if (step + 1 < steps) {
      load_stage<PRODUCTS>(a, next_code, next_dim, &next.codes);
      load_chunk<X>(a, rows, present, next_dim, value);
    }
    const StreamedStage<PRODUCTS>& stage = stages[step % 2];
    Accumulator<1> sum = {};
    multiply_stage<PRODUCTS, 1>(sum, stage.high + warp_row * kStagePitch, stage.low + warp_row * kStagePitch,
                                kStagePitch, min(kChunk, a.padded_dim - first_dim), stage.codes);
    add_chunk<1>(total, sum, first_dim == 0);
    if (next_dim == 0) offer_tile<CERTIFY, 1>(best, total, stage.codes.bias, tile_code);
    if (step + 1 < steps) store_chunk<PRODUCTS>(a, next_dim, value, &next);
    first_dim = next_dim;
    tile_code = next_code;
  }
  keep_tile_bests<kStreamedRows, 1>(best, warp_row, &rows->state);
  finish<X, kStreamedRows>(a, &rows->state, reinterpret_cast<unsigned char*>(stages));
}

}  // namespace vq_cuda
