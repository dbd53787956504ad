// gather_codes: out[n, :] = codebook[indices[n], :]. Reads N D through the cache, writes N D once.
#include "common.cuh"

namespace vq_cuda {
namespace {

constexpr int kGatherThreads = 256;
constexpr int kGatherRows = 64;

template <typename T>
__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(const T* codebook, const int64_t* indices, T* out, const RowMap map, int64_t rows, int dim,
                  bool lanes_over_rows) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kGatherRows;
  const int tid = static_cast<int>(threadIdx.x);
  // Channel-first: 64 neighbouring rows by 4 groups of dimensions; else a warp a row.
  const int rows_at_once = lanes_over_rows ? kGatherRows : kGatherThreads / kWarp;
  const int lanes = kGatherThreads / rows_at_once;
  const int lane = lanes_over_rows ? tid / kGatherRows : tid % kWarp;
  for (int r = lanes_over_rows ? tid % kGatherRows : tid / kWarp; r < kGatherRows; r += rows_at_once) {
    const int64_t n = first_row + r;
    if (n >= rows) break;
    const T* code = codebook + indices[n] * dim;
    T* row = out + map.offset(n);
    for (int d = lane; d < dim; d += lanes) row[d * map.strides.dim] = code[d];
  }
}

}  // namespace
}  // namespace vq_cuda

extern "C" int vq_cuda_gather_codes(const VqCodes* codebook, const int64_t* indices,
                                    const VqRows* quantized, VqCudaStream stream) {
  using namespace vq_cuda;
  const int64_t rows = quantized->batches * quantized->rows;
  if (rows == 0) return cudaSuccess;
  if (quantized->dtype != codebook->dtype) return cudaErrorInvalidValue;
  const cudaError_t error = select_device(stream.device);
  if (error != cudaSuccess) return error;
  return with_dtype(quantized->dtype, [&](auto type) {
    using T = decltype(type);
    return launch(gather_kernel<T>, ceil_div(rows, kGatherRows), kGatherThreads, 0, stream, false,
                  static_cast<const T*>(codebook->data), indices, static_cast<T*>(quantized->data),
                  row_map(*quantized), rows, static_cast<int>(codebook->dim),
                  rows_are_contiguous(*quantized));
  });
}
