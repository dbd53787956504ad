// Search for D <= 8 with float32 fused multiply-add: a thread keeps whole rows in registers and all
// threads walk over the same codes, which they read from shared memory as broadcasts.
//
// Per (row, code) pair: D multiply-adds and 5 operations for best, second and index. x is read once.
#include "finish.cuh"

namespace vq_cuda {
namespace {

constexpr int kRowsPerThread = kSmallBlockRows / kThreads;
constexpr int kBlockRows = kSmallBlockRows;
constexpr int kCodes = 4 * kTileCodes;  // codes in shared memory at a time

template <typename X>
struct Loader {
  const SearchArgs& a;
  // Registers [D] of the negated, shifted row; returns whether it is finite.
  template <int D>
  __device__ bool operator()(int64_t n, const float* centre, float (&v)[D], float& squares) const {
    const X* x = static_cast<const X*>(a.x.data) + a.x.map.offset(n);
    bool finite = true;
    squares = 0.0f;
#pragma unroll
    for (int d = 0; d < D; ++d) {
      v[d] = 0.0f;
      if (d >= a.dim) continue;
      const float value = to_float(x[d * a.x.map.strides.dim]);
      finite = finite && is_finite(value);
      v[d] = centre[d] - value;
      squares = fmaf(v[d], v[d], squares);
    }
    return finite;
  }
};

template <int D>
struct __align__(D % 4 == 0 ? 16 : 8) Code {
  float e[D];
};

template <typename X, int D>
__global__ void __launch_bounds__(kThreads, kSmallResident)
    search_small_kernel(const __grid_constant__ SearchArgs a) {
  unsigned char* smem = dynamic_shared();
  Code<D>* codes = reinterpret_cast<Code<D>*>(smem);  // [kCodes]
  float* bias = reinterpret_cast<float*>(codes + kCodes);  // [kCodes]
  float* centre = bias + kCodes;  // [8]
  auto* rows = reinterpret_cast<RowState<kBlockRows>*>(centre + 8);
  unsigned char* scratch = reinterpret_cast<unsigned char*>(rows + 1);
  const int tid = static_cast<int>(threadIdx.x);
  const Share share = share_of(a, kBlockRows);
  const Unit unit = unit_of(a, share, blockIdx.x, kBlockRows);
  const int64_t first_row = unit.first_row;
  const int end = min(unit.end_code, a.codes);

  if (tid < a.dim) centre[tid] = a.x.centre[tid];
  const Extremes extremes = *a.extremes;
  __syncthreads();
  float x[kRowsPerThread][D];
  Best best[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    const int r = tid + i * kThreads;
    const int64_t n = first_row + r;
    float squares = 0.0f;
    bool finite = true;
#pragma unroll
    for (int d = 0; d < D; ++d) x[i][d] = 0.0f;
    if (n < a.rows) finite = Loader<X>{a}(n, centre, x[i], squares);
    rows->number[r] = n < a.rows ? static_cast<int>(n) : -1;
    rows->flag[r] = row_flag(a, n, !finite);
    rows->error[r] = float32_error(a.factors, extremes, norm_bound(a.factors, squares));
  }

  for (int start = unit.first_code; start < end; start += kCodes) {
    __syncthreads();
    for (int j = tid; j < kCodes; j += kThreads) {
      const int code = start + j;
      const bool usable = code < end && a.bias[code] < kInfinity;
      bias[j] = usable ? a.bias[code] : kInfinity;
#pragma unroll
      for (int d = 0; d < D; ++d) {
        float e = 0.0f;
        if (usable && d < a.dim) {
          const int64_t at = static_cast<int64_t>(code) * a.dim + d;
          e = (a.codebook_is_float ? static_cast<const float*>(a.codebook)[at]
                                   : to_float(static_cast<const X*>(a.codebook)[at])) -
              centre[d];
        }
        codes[j].e[d] = e;
      }
    }
    __syncthreads();
    const int count = min(end - start, kCodes);
#pragma unroll 2
    for (int j = 0; j < count; ++j) {
      const Code<D> code = codes[j];
      const float h = bias[j];
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        float s = h;
#pragma unroll
        for (int d = 0; d < D; ++d) s = fmaf(x[i][d], code.e[d], s);
        best[i].offer(s, start + j);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) keep_best(rows, tid + i * kThreads, best[i]);
  finish<kBlockRows>(a, unit.block, unit.piece, share.pieces, rows, scratch);
}

template <typename X, int D>
cudaError_t launch_dim(const SearchArgs& a, const SearchPlan& plan, const VqCudaStream& stream) {
  const int64_t shared = static_cast<int64_t>(kCodes) * 9 * sizeof(float) + 8 * sizeof(float) +
                         sizeof(RowState<kBlockRows>) + finish_bytes();
  return launch(search_small_kernel<X, D>, search_blocks(a, plan), kThreads, shared, stream, false, a);
}

}  // namespace

cudaError_t launch_search_small(const SearchArgs& a, const SearchPlan& plan, const VqCudaStream& stream) {
  return with_dtype(a.x.dtype, [&](auto type) {
    using X = decltype(type);
    if (a.dim <= 2) return launch_dim<X, 2>(a, plan, stream);
    return a.dim <= 4 ? launch_dim<X, 4>(a, plan, stream) : launch_dim<X, 8>(a, plan, stream);
  });
}

}  // namespace vq_cuda
