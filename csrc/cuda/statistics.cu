// code_statistics: rows per code and their sums, bit for bit the same in every run.
//
// Counts are integer atomics. Sums are 64-bit fixed point, so that atomics may come in any order: with
// n rows of code k and largest magnitude below 2^e, elements are scaled by 2^(62 - ceil(log2 n) - e) and
// rounded to integers whose sum cannot overflow. The error is at most n 2^-(62 - log2 n) of the code's
// largest element, far below that of a float32 sum. The block that adds the last row of a code turns
// its sums into float32. Where the differences of rows and codes are summed, n and e are theirs.
//
// Non-finite elements (if they are not skipped) are remembered as flag bits in the float sums, which
// are zero until the code is complete.
#include "common.cuh"
#include "search.cuh"

namespace vq_cuda {
namespace {

constexpr int kSumThreads = 256;
constexpr int kSumWarps = kSumThreads / kWarp;
constexpr int kSumBatch = 8;
constexpr int kSumRows = kSumBatch * kSumWarps;  // rows a block
constexpr int kSumDepth = 32;  // dimensions of a transposed tile

enum NonfiniteFlag : unsigned { kSawNan = 1, kSawPlus = 2, kSawMinus = 4 };

// elements < 2^(exponent - 126), exponent >= 1
__device__ int fixed_point_shift(unsigned largest_bits, int64_t count) {
  const int exponent = max(static_cast<int>(largest_bits >> 23), 1);
  const int count_bits = count > 1 ? 64 - __clzll(count - 1) : 0;
  return 62 - count_bits - (exponent - 126);
}

// v 2^shift rounded to the nearest integer, halves away from zero.
__device__ long long to_fixed(float v, int shift) {
  const unsigned bits = __float_as_uint(v);
  const int exponent = max(static_cast<int>((bits >> 23) & 255), 1);
  const long long mantissa = (bits & 0x7fffffu) | ((bits & 0x7f800000u) != 0 ? 0x800000u : 0u);
  const int s = exponent - 150 + shift;
  long long magnitude = 0;
  if (s >= 0) {
    magnitude = mantissa << s;
  } else if (s > -26) {
    magnitude = (mantissa + (1ll << (-s - 1))) >> -s;
  }
  return bits >> 31 ? -magnitude : magnitude;
}

__device__ void add_element(const StatisticsArgs& s, int64_t at, float v, int shift) {
  if (is_finite(v)) {
    atomicAdd(s.accumulators + at, static_cast<unsigned long long>(to_fixed(v, shift)));
    return;
  }
  const unsigned flag = v != v ? kSawNan : v > 0.0f ? kSawPlus : kSawMinus;
  atomicOr(reinterpret_cast<unsigned*>(s.sums) + at, flag);
}

__device__ float from_fixed(long long sum, unsigned flags, int shift) {
  if (flags == kSawPlus) return kInfinity;
  if (flags == kSawMinus) return -kInfinity;
  if (flags != 0) return __uint_as_float(0x7fc00000u);
  return static_cast<float>(ldexp(static_cast<double>(sum), -shift));
}

struct SumShared {
  float tile[kSumRows][kSumDepth + 1];
  int64_t offset[kSumRows];
  int slot[kSumRows];
  int shift[kSumRows];
  int complete[kSumRows];  // codes whose last row this block added, else -1
};

// An element of a row as it is summed; `at` is its place in the sums.
template <typename X>
__device__ float summed(const StatisticsArgs& s, float v, int64_t at) {
  if (s.codes == nullptr) return v;
  const float e = s.codes_are_float ? static_cast<const float*>(s.codes)[at]
                                    : to_float(static_cast<const X*>(s.codes)[at]);
  return summed_difference(v, e);
}

template <typename X>
__global__ void __launch_bounds__(kSumThreads)
    sums_kernel(const X* x, const RowMap map, int64_t rows, int dim, bool lanes_over_rows,
                const StatisticsArgs s) {
  SumShared* shared = reinterpret_cast<SumShared*>(dynamic_shared());
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp, lane = tid % kWarp;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kSumRows;
  if (tid < kSumRows) {
    const int slot = first_row + tid < rows ? s.slots[first_row + tid] : -1;
    shared->slot[tid] = slot;
    shared->offset[tid] = slot >= 0 ? map.offset(first_row + tid) : 0;
    shared->shift[tid] = slot >= 0 ? fixed_point_shift(s.largest[slot], s.counts[slot]) : 0;
  }
  __syncthreads();

  if (!lanes_over_rows) {
    for (int d = lane; d < dim; d += kWarp) {
      for (int r0 = warp; r0 < kSumRows; r0 += kSumBatch * kSumWarps) {
        float value[kSumBatch];  // loads first: they cannot pass the atomics
#pragma unroll
        for (int i = 0; i < kSumBatch; ++i) {
          const int r = r0 + i * kSumWarps;
          const int64_t slot = shared->slot[r];
          value[i] = slot >= 0
                         ? summed<X>(s, to_float(x[shared->offset[r] + d * map.strides.dim]), slot * dim + d)
                         : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kSumBatch; ++i) {
          const int r = r0 + i * kSumWarps;
          const int64_t slot = shared->slot[r];
          if (slot >= 0) add_element(s, slot * dim + d, value[i], shared->shift[r]);
        }
      }
    }
  } else {
    // Neighbouring rows are neighbours in memory; neighbouring dimensions are in the accumulators.
    const int r_load = tid % kSumRows;
    const bool present = shared->slot[r_load] >= 0;
    const X* row = x + shared->offset[r_load];
    for (int d0 = 0; d0 < dim; d0 += kSumDepth) {
      for (int k = tid / kSumRows; k < kSumDepth; k += kSumThreads / kSumRows) {
        const bool inside = present && d0 + k < dim;
        shared->tile[r_load][k] = inside ? to_float(row[(d0 + k) * map.strides.dim]) : 0.0f;
      }
      __syncthreads();
      for (int r = warp; r < kSumRows; r += kSumWarps) {
        const int64_t slot = shared->slot[r], at = slot * dim + d0 + lane;
        if (slot >= 0 && d0 + lane < dim) {
          add_element(s, at, summed<X>(s, shared->tile[r][lane], at), shared->shift[r]);
        }
      }
      __syncthreads();
    }
  }

  // All of this block's additions are visible to the device before it says that they are done.
  __threadfence();
  __syncthreads();
  if (tid < kSumRows) {
    const int slot = shared->slot[tid];
    const bool last = slot >= 0 && atomicAdd(s.done + slot, 1u) + 1 == static_cast<unsigned>(s.counts[slot]);
    shared->complete[tid] = last ? slot : -1;
  }
  __syncthreads();
  for (int r = warp; r < kSumRows; r += kSumWarps) {
    const int64_t slot = shared->complete[r];
    if (slot < 0) continue;
    __threadfence();
    const int shift = shared->shift[r];
    for (int d = lane; d < dim; d += kWarp) {
      const int64_t at = slot * dim + d;
      const long long sum = static_cast<long long>(__ldcg(s.accumulators + at));
      s.sums[at] = from_fixed(sum, __ldcg(reinterpret_cast<const unsigned*>(s.sums) + at), shift);
    }
  }
}

// A thread a row if neighbouring rows are neighbours in memory, else a warp a row.
__host__ __device__ constexpr int count_block_rows(bool lanes_over_rows) {
  return lanes_over_rows ? kSumThreads : kSumRows;
}

// Which code each row counts for, rows per code, and the largest finite magnitude per code.
template <typename X>
__global__ void __launch_bounds__(kSumThreads)
    count_kernel(const X* x, const RowMap map, int64_t rows, int dim, bool lanes_over_rows,
                 bool skip_nonfinite, const int64_t* indices, int64_t codes, const StatisticsArgs s) {
  const int tid = static_cast<int>(threadIdx.x);
  const int block_rows = count_block_rows(lanes_over_rows);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * block_rows;
  const int lane = lanes_over_rows ? 0 : tid % kWarp;
  const int lanes = lanes_over_rows ? 1 : kWarp;
  const int step = lanes_over_rows ? kSumThreads : kSumWarps;
  for (int r = lanes_over_rows ? tid : tid / kWarp; r < block_rows; r += step) {
    const int64_t n = first_row + r;
    if (n >= rows) break;
    const int64_t index = indices[n] < codes ? indices[n] : -1;
    float largest = 0.0f;
    int nonfinite = 0;
    if (index >= 0) {
      const X* row = x + map.offset(n);
      for (int d = lane; d < dim; d += lanes) {
        const float v = to_float(row[d * map.strides.dim]);
        if (is_finite(v)) {
          largest = fmaxf(largest, fabsf(v));
        } else {
          nonfinite = 1;
        }
      }
    }
    if (!lanes_over_rows) {
      largest = warp_max(largest);
      nonfinite = warp_sum(nonfinite);
    }
    if (lane != 0) continue;
    const bool counts = index >= 0 && !(skip_nonfinite && nonfinite != 0);
    s.slots[n] = counts ? static_cast<int>(index) : -1;
    if (!counts) continue;
    atomicAdd(reinterpret_cast<unsigned long long*>(s.counts + index), 1ull);
    atomicMax(s.largest + index, __float_as_uint(largest));
  }
}

}  // namespace

cudaError_t launch_sums(const void* x, int dtype, const RowMap& map, int64_t rows, int64_t dim,
                        bool lanes_over_rows, const StatisticsArgs& statistics, const VqCudaStream& stream) {
  return with_dtype(dtype, [&](auto type) {
    using X = decltype(type);
    return launch(sums_kernel<X>, ceil_div(rows, kSumRows), kSumThreads, sizeof(SumShared), stream, false,
                  static_cast<const X*>(x), map, rows, static_cast<int>(dim), lanes_over_rows, statistics);
  });
}

}  // namespace vq_cuda

extern "C" {

// [K, D] accumulators, [K] largest and done, [N] slots: the zeroed part first.
int64_t vq_cuda_statistics_workspace(int64_t rows, int64_t codes, int64_t dim) {
  return codes * dim * 8 + codes * 8 + rows * 4;
}

int vq_cuda_code_statistics(const VqRows* x, const int64_t* indices, int64_t codes, int skip_nonfinite,
                            int64_t* counts, float* sums, void* workspace, int64_t workspace_bytes,
                            VqCudaStream stream) {
  using namespace vq_cuda;
  const int64_t rows = x->batches * x->rows;
  if (codes > INT32_MAX || workspace_bytes < vq_cuda_statistics_workspace(rows, codes, x->dim)) {
    return cudaErrorInvalidValue;
  }
  cudaError_t error = select_device(stream.device);
  if (error != cudaSuccess) return error;
  const cudaStream_t queue = static_cast<cudaStream_t>(stream.stream);
  StatisticsArgs s{};
  s.counts = counts;
  s.sums = sums;
  s.accumulators = static_cast<unsigned long long*>(workspace);
  s.largest = reinterpret_cast<unsigned*>(s.accumulators + codes * x->dim);
  s.done = s.largest + codes;
  s.slots = reinterpret_cast<int32_t*>(s.done + codes);
  error = cudaMemsetAsync(workspace, 0, static_cast<size_t>(codes * x->dim * 8 + codes * 8), queue);
  if (error == cudaSuccess) error = cudaMemsetAsync(counts, 0, static_cast<size_t>(codes * 8), queue);
  if (error == cudaSuccess) error = cudaMemsetAsync(sums, 0, static_cast<size_t>(codes * x->dim * 4), queue);
  if (error != cudaSuccess || rows == 0) return error;
  const RowMap map = row_map(*x);
  const bool lanes_over_rows = rows_are_contiguous(*x);
  error = with_dtype(x->dtype, [&](auto type) {
    using X = decltype(type);
    return launch(count_kernel<X>, ceil_div(rows, count_block_rows(lanes_over_rows)), kSumThreads, 0, stream,
                  false, static_cast<const X*>(x->data), map, rows, static_cast<int>(x->dim), lanes_over_rows,
                  skip_nonfinite != 0, indices, codes, s);
  });
  if (error != cudaSuccess) return error;
  return launch_sums(x->data, x->dtype, map, rows, x->dim, lanes_over_rows, s, stream);
}

}  // extern "C"
