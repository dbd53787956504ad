// Search for any D with float32 fused multiply-add: 64 rows by 64 codes a block, 8 x 4 a thread, D in
// steps of 16 through shared memory. For sizes that the tensor-core kernel's shared memory cannot hold
// and for GPUs below compute capability 8.0.
#include "finish.cuh"

namespace vq_cuda {
namespace {

constexpr int kBlockRows = kTileBlockRows;
constexpr int kDepth = 16;
constexpr int kPitch = kTileCodes + 4;  // floats: 16-byte rows that do not all start in one bank
constexpr int kThreadRows = 8, kThreadCodes = 4;
constexpr int kLanes = kTileCodes / kThreadCodes;  // threads that share a row

struct TileShared {
  float x[kDepth][kPitch];
  float e[kDepth][kPitch];
  RowState<kBlockRows> rows;
};

// Flags and error bounds of the block's rows, one warp per row.
template <typename X>
__device__ void measure_rows(const SearchArgs& a, int64_t first_row, const Extremes& extremes, TileShared* s) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < kBlockRows; r += kWarps) {
    const int64_t n = first_row + r;
    float squares = 0.0f;
    bool finite = true;
    if (n < a.rows) {
      const X* x = static_cast<const X*>(a.x.data) + a.x.map.offset(n);
      for (int d = lane; d < a.dim; d += kWarp) {
        const float value = to_float(x[d * a.x.map.strides.dim]);
        finite = finite && is_finite(value);
        const float shifted = value - a.x.centre[d];
        squares = fmaf(shifted, shifted, squares);
      }
    }
    squares = warp_sum(squares);
    finite = __all_sync(kAllLanes, finite);
    if (lane == 0) {
      s->rows.number[r] = n < a.rows ? static_cast<int>(n) : -1;
      s->rows.flag[r] = row_flag(a, n, !finite);
      s->rows.error[r] = float32_error(a.factors, extremes, norm_bound(a.factors, squares));
    }
  }
}

template <typename X>
__device__ void load_chunk(const SearchArgs& a, int64_t first_row, int first_code, int first_dim,
                           TileShared* s) {
  const int tid = static_cast<int>(threadIdx.x);
  for (int i = tid; i < kDepth * kBlockRows; i += kThreads) {
    const int r = a.lanes_over_rows ? i % kBlockRows : i / kDepth;
    const int k = a.lanes_over_rows ? i / kBlockRows : i % kDepth;
    const int d = first_dim + k;
    const int64_t n = first_row + r;
    float value = 0.0f;
    if (n < a.rows && d < a.dim) {
      value = to_float(static_cast<const X*>(a.x.data)[a.x.map.offset(n) + d * a.x.map.strides.dim]) - a.x.centre[d];
    }
    s->x[k][r] = value;
  }
  for (int i = tid; i < kDepth * kTileCodes; i += kThreads) {
    const int j = i / kDepth, k = i % kDepth;
    const int code = first_code + j, d = first_dim + k;
    float value = 0.0f;
    if (code < a.codes && d < a.dim && a.bias[code] < kInfinity) {
      const int64_t at = static_cast<int64_t>(code) * a.dim + d;
      value = (a.codebook_is_float ? static_cast<const float*>(a.codebook)[at]
                                   : to_float(static_cast<const X*>(a.codebook)[at])) -
              a.x.centre[d];
    }
    s->e[k][j] = value;
  }
}

template <typename X>
__global__ void __launch_bounds__(kThreads, kTileResident)
    search_tile_kernel(const __grid_constant__ SearchArgs a) {
  TileShared* s = reinterpret_cast<TileShared*>(dynamic_shared());
  unsigned char* scratch = dynamic_shared() + sizeof(TileShared);
  const int tid = static_cast<int>(threadIdx.x);
  const int row0 = tid / kLanes * kThreadRows, code0 = tid % kLanes * kThreadCodes;
  const Share share = share_of(a, kBlockRows);
  const Unit unit = unit_of(a, share, blockIdx.x, kBlockRows);
  const int64_t first_row = unit.first_row;
  measure_rows<X>(a, first_row, *a.extremes, s);

  Best best[kThreadRows];
  for (int start = unit.first_code; start < unit.end_code; start += kTileCodes) {
    float sum[kThreadRows][kThreadCodes] = {};
    for (int d = 0; d < a.dim; d += kDepth) {
      __syncthreads();
      load_chunk<X>(a, first_row, start, d, s);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        float x[kThreadRows], e[kThreadCodes];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) x[i] = s->x[k][row0 + i];
#pragma unroll
        for (int j = 0; j < kThreadCodes; ++j) e[j] = s->e[k][code0 + j];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
          for (int j = 0; j < kThreadCodes; ++j) sum[i][j] = fmaf(x[i], e[j], sum[i][j]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kThreadCodes; ++j) {
      const int code = start + code0 + j;  // bias is padded to whole tiles
      const float h = a.bias[code];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) best[i].offer(h - sum[i][j], code);
    }
  }

#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    for (int step = 1; step < kLanes; step *= 2) best[i].merge_lanes(step);
    if (tid % kLanes == 0) keep_best(&s->rows, row0 + i, best[i]);
  }
  finish<kBlockRows>(a, unit.block, unit.piece, share.pieces, &s->rows, scratch);
}

}  // namespace

cudaError_t launch_search_tile(const SearchArgs& a, const SearchPlan& plan, const VqCudaStream& stream) {
  const int64_t shared = static_cast<int64_t>(sizeof(TileShared)) + finish_bytes();
  return with_dtype(a.x.dtype, [&](auto type) {
    return launch(search_tile_kernel<decltype(type)>, search_blocks(a, plan), kThreads, shared, stream, false, a);
  });
}

}  // namespace vq_cuda
