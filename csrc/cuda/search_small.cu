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
    const X* x = static_cast<const X*>(a.x) + a.x_map.offset(n);
    bool finite = true;
    squares = 0.0f;
#pragma unroll
    for (int d = 0; d < D; ++d) {
      v[d] = 0.0f;
      if (d >= a.dim) continue;
      const float value = to_float(x[d * a.x_map.strides.dim]);
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
  const int64_t first_row = row_block(a) * kBlockRows;
  const int end = min(end_code(a), a.codes);

  if (tid < a.dim) centre[tid] = a.centre[tid];
  const Extent extent = extent_of_codes(a);
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
    rows->flag[r] = row_flag(a, n, !finite);
    rows->error[r] = score_error(a.factors, extent, norm_bound(a.factors, squares), 0.0f);
  }

  for (int start = first_code(a); start < end; start += kCodes) {
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
        best[i].template offer<true>(s, start + j);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) keep_best(rows, tid + i * kThreads, best[i]);
  finish<X, kBlockRows>(a, rows, scratch);
}

template <typename X, int D>
cudaError_t launch_dim(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream) {
  return launch(search_small_kernel<X, D>, search_blocks(a, p), kThreads, p.shared_bytes, stream, false, a);
}

}  // namespace

cudaError_t launch_search_small(const SearchArgs& a, const SearchPlan& plan, int dtype,
                                const VqCudaStream& stream) {
  SearchPlan p = plan;
  p.shared_bytes = static_cast<int64_t>(kCodes) * 9 * sizeof(float) + 8 * sizeof(float) +
                   sizeof(RowState<kBlockRows>) + finish_bytes();
  return with_dtype(dtype, [&](auto type) {
    using X = decltype(type);
    if (a.dim <= 2) return launch_dim<X, 2>(a, p, stream);
    return a.dim <= 4 ? launch_dim<X, 4>(a, p, stream) : launch_dim<X, 8>(a, p, stream);
  });
}

}  // namespace vq_cuda
