// Search on the tensor cores for rows so long that no block of them fits into shared memory (mma_tiles.cuh).
//
// The rows' chunks come along with the codes': both in stages of 64 dimensions, double-buffered. x is loaded
// into registers while the stage before is multiplied, and split into 16-bit parts after that.
//
// Traffic out of L2: the codebook's parts once a block, x once for every 64 codes.
#pragma once

#include "mma_tiles.cuh"

namespace vq_cuda {

constexpr int kStreamedRows = 16 * kWarps;
constexpr int kStreamedStages = 2;
constexpr int kStreamedLoads = kStreamedRows * kChunk / kThreads;  // values of a chunk that a thread takes

template <int PRODUCTS>
struct StreamedStage {
  Stage<PRODUCTS> codes;
  uint16_t high[kStreamedRows * kStagePitch];
  uint16_t low[PRODUCTS == 3 ? kStreamedRows * kStagePitch : 8];
};

template <int PRODUCTS>
inline int64_t streamed_shared_bytes() {
  const int64_t stages = kStreamedStages * static_cast<int64_t>(sizeof(StreamedStage<PRODUCTS>));
  return static_cast<int64_t>(sizeof(MatrixRows<kStreamedRows>)) + stages;
}

__device__ inline float entry_of(const RowSource& x, int64_t at) {
  return x.dtype == VQ_FLOAT32    ? static_cast<const float*>(x.data)[at]
         : x.dtype == VQ_BFLOAT16 ? to_float(static_cast<const __nv_bfloat16*>(x.data)[at])
                                  : to_float(static_cast<const __half*>(x.data)[at]);
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

__device__ inline void load_chunk(const SearchArgs& a, const MatrixRows<kStreamedRows>* rows, int first_dim,
                                  float (&value)[kStreamedLoads]) {
#pragma unroll
  for (int i = 0; i < kStreamedLoads; ++i) {
    const ChunkPlace at(a.lanes_over_rows, i);
    const int d = first_dim + at.dim;
    const bool inside = rows->state.flag[at.row] == kCertain && d < a.dim;
    value[i] = inside ? entry_of(a.x, rows->offset[at.row] + d * a.x.map.strides.dim) : 0.0f;
  }
}

template <typename T, int PRODUCTS>
__device__ inline void store_chunk(const SearchArgs& a, const MatrixRows<kStreamedRows>* rows, int first_dim,
                                   const float (&value)[kStreamedLoads], StreamedStage<PRODUCTS>* stage) {
#pragma unroll
  for (int i = 0; i < kStreamedLoads; ++i) {
    const ChunkPlace at(a.lanes_over_rows, i);
    const bool counts = rows->state.flag[at.row] == kCertain;
    const float scaled = counts ? centred(a.x, first_dim + at.dim, value[i]) * rows->factor[at.row] : 0.0f;
    const T high = from_float<T>(scaled);
    stage->high[at.row * kStagePitch + at.dim] = *reinterpret_cast<const uint16_t*>(&high);
    if (PRODUCTS == 3) {
      const T low = from_float<T>(scaled - to_float(high));
      stage->low[at.row * kStagePitch + at.dim] = *reinterpret_cast<const uint16_t*>(&low);
    }
  }
}

// Numbers, flags and error bounds of the unit's rows, one warp a row.
template <typename T, int PARTS, int CODE_PARTS, Epilogue EPILOGUE>
__device__ inline void measure_streamed_rows(const SearchArgs& a, MatrixRows<kStreamedRows>* rows) {
  const Extremes extremes = *a.extremes;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  number_rows(a, rows);
  float shift = 0.0f;
  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < kStreamedRows; r += kWarps) {
    const int dim = rows->state.flag[r] == kCertain ? a.dim : 0;
    RowMeasures<PARTS> m;
    for (int d = lane; d < dim; d += kWarp) {
      const float value = entry_of(a.x, rows->offset[r] + d * a.x.map.strides.dim);
      m.look(value, centred(a.x, d, value));
    }
    m.template join_lanes<kWarp>();
    const RowPowers p = row_powers(a.bound, extremes, m.widest);
    for (int d = lane; d < dim && !m.nonfinite; d += kWarp) {
      const float value = entry_of(a.x, rows->offset[r] + d * a.x.map.strides.dim);
      const float scaled = centred(a.x, d, value) * p.row, rest = scaled - to_float(from_float<T>(scaled));
      const float low = PARTS == 2 ? to_float(from_float<T>(rest)) : 0.0f;
      m.squares = fmaf(scaled, scaled, m.squares);
      m.missed = fmaf(rest - low, rest - low, m.missed);
      m.low_squares = fmaf(low, low, m.low_squares);
    }
    m.template join_sums<kWarp>();
    if (lane == 0) shift = fmaxf(shift, keep_row<PARTS, CODE_PARTS, EPILOGUE>(a, extremes, m, p, r, rows));
  }
  share_shift<EPILOGUE>(shift, rows);
  __syncthreads();
}

template <typename T, int PRODUCTS, Epilogue EPILOGUE, bool CHUNKED>
__global__ void __launch_bounds__(kThreads, 2)
    search_mma_streamed_kernel(const __grid_constant__ SearchArgs a) {
  auto* rows = reinterpret_cast<MatrixRows<kStreamedRows>*>(dynamic_shared());
  auto* stages = reinterpret_cast<StreamedStage<PRODUCTS>*>(rows + 1);
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int lane_row = warp_row + static_cast<int>(threadIdx.x) % kWarp / 4;
  begin_share(a, rows);
  for (unsigned number = blockIdx.x; number < rows->share.units; number += gridDim.x) {
    begin_unit(a, number, rows);
    const int steps = steps_of(rows->unit, a.padded_dim);
    StageWalk at{rows->unit.first_code, 0};
    measure_streamed_rows<T, PRODUCTS == 3 ? 2 : 1, PRODUCTS == 1 ? 1 : 2, EPILOGUE>(a, rows);
    load_stage<PRODUCTS>(a, at.code, 0, &stages[0].codes);
    copy_async_commit();
    float value[kStreamedLoads];
    load_chunk(a, rows, 0, value);
    store_chunk<T, PRODUCTS>(a, rows, 0, value, stages);

    TileBests best[1];
    PackedHalves packed[1];
    Accumulator<1> total;  // with CHUNKED
    Accumulator<1> sum;
    const float* scales = rows->scale + lane_row;
    for (int step = 0; step < steps; ++step) {
      copy_async_wait<0>();
      __syncthreads();  // the stage has arrived for all, and nobody reads the other one any more
      StageWalk next = at;
      next.advance(a.padded_dim);
      StreamedStage<PRODUCTS>& ahead = stages[(step + 1) % kStreamedStages];
      if (step + 1 < steps) {
        load_stage<PRODUCTS>(a, next.code, next.dim, &ahead.codes);
        copy_async_commit();
        load_chunk(a, rows, next.dim, value);
      }
      const StreamedStage<PRODUCTS>& stage = stages[step % kStreamedStages];
      if (CHUNKED || at.dim == 0) clear<1>(sum);
      multiply_stage<T, PRODUCTS, 1>(sum, stage.high + warp_row * kStagePitch, stage.low + warp_row * kStagePitch,
                                     kStagePitch, min(kChunk, a.padded_dim - at.dim), stage.codes);
      if (CHUNKED) add_chunk<1>(total, sum, at.dim == 0);
      if (next.dim == 0) {
        if (EPILOGUE == kWholeScores) {
          offer_tile<1>(best, CHUNKED ? total : sum, stage.codes.bias, scales, at.code);
        } else {
          offer_packed_tile<EPILOGUE == kPackedScores, 1>(packed, CHUNKED ? total : sum, stage.codes.bias, rows->shift,
                                                          scales, at.code, rows->keep_bits);
        }
      }
      if (step + 1 < steps) store_chunk<T, PRODUCTS>(a, rows, next.dim, value, &ahead);
      at = next;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Best b = EPILOGUE == kWholeScores ? best[0].half[i] : unpacked(packed[0].row[i], rows->keep_bits, a.codes);
      keep_lanes_best(b, lane_row + 8 * i, &rows->state);
    }
    finish<kStreamedRows>(a, rows->unit.block, rows->unit.piece, rows->share.pieces, &rows->state,
                          reinterpret_cast<unsigned char*>(stages));
  }
}

}  // namespace vq_cuda
