// ema_update_: the exponential moving average of cluster sizes and sums, and the codebook from them.
//
//     size'  = lerp(size, counts, 1 - decay)         avg' = lerp(avg, sums, 1 - decay)
//     total  = sum size'                             float64, slices of 256 codes in order
//     code   = avg' / ((size' + eps) / (total + K eps) * total)
//
// A code that float32 overflow would spoil stays as it is: each warp looks at its row first, and reads it again
// from the L1 cache.
// One cooperative launch: the total of all sizes is needed before the first may be overwritten.
#include "common.cuh"

namespace vq_cuda {
namespace {

constexpr int kEmaThreads = 256;
constexpr int kEmaWarps = kEmaThreads / kWarp;

struct EmaArgs {
  float *codebook, *cluster_size, *embed_avg;
  const void* counts;
  bool counts_are_float;
  const float* sums;
  int64_t codes, dim;
  float one_minus_decay, eps;
  bool normalize;
  double *slice_total, *slice_count;  // [slices]
};

__device__ float lerp(float start, float end, float weight) {
  const float difference = end - start;
  return weight < 0.5f ? start + weight * difference : end - difference * (1.0f - weight);
}

__device__ float count_of(const EmaArgs& a, int64_t code) {
  return a.counts_are_float ? static_cast<const float*>(a.counts)[code]
                            : static_cast<float>(static_cast<const int64_t*>(a.counts)[code]);
}

__global__ void __launch_bounds__(kEmaThreads) ema_kernel(const __grid_constant__ EmaArgs a) {
  double* scratch = reinterpret_cast<double*>(dynamic_shared());
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp, lane = tid % kWarp;
  const int64_t slices = (a.codes + kEmaThreads - 1) / kEmaThreads;
  for (int64_t slice = blockIdx.x; slice < slices; slice += gridDim.x) {
    const int64_t code = slice * kEmaThreads + tid;
    const float count = code < a.codes ? count_of(a, code) : 0.0f;
    const float size = code < a.codes ? lerp(a.cluster_size[code], count, a.one_minus_decay) : 0.0f;
    const double total = block_sum<kEmaThreads>(static_cast<double>(size), scratch);
    const double counted = block_sum<kEmaThreads>(static_cast<double>(count), scratch);
    if (tid == 0) {
      a.slice_total[slice] = total;
      a.slice_count[slice] = counted;
    }
  }
  grid_barrier();
  double total = 0.0, counted = 0.0;
  for (int64_t slice = tid; slice < slices; slice += kEmaThreads) {
    total += __ldcg(a.slice_total + slice);
    counted += __ldcg(a.slice_count + slice);
  }
  total = block_sum<kEmaThreads>(total, scratch);
  counted = block_sum<kEmaThreads>(counted, scratch);
  if (!(counted > 0.0)) return;
  const float all = static_cast<float>(total);
  const float denominator = all + static_cast<float>(a.codes) * a.eps;

  for (int64_t code = static_cast<int64_t>(blockIdx.x) * kEmaWarps + warp; code < a.codes;
       code += static_cast<int64_t>(gridDim.x) * kEmaWarps) {
    const float size = lerp(a.cluster_size[code], count_of(a, code), a.one_minus_decay);
    const float smoothed = (size + a.eps) / denominator * all;
    int overflows = 0, spoilt = 0;
    for (int64_t d = lane; d < a.dim; d += kWarp) {
      const int64_t at = code * a.dim + d;
      const float before = a.embed_avg[at], average = lerp(before, a.sums[at], a.one_minus_decay);
      overflows |= !is_finite(a.normalize ? average : average / smoothed);
      spoilt |= !is_finite(before);
    }
    // float32 cannot hold its average: the code takes no part.
    if (warp_sum(overflows) != 0 && warp_sum(spoilt) == 0) continue;
    double squares = 0.0;  // those of small averages are 0 in float32
    for (int64_t d = lane; d < a.dim; d += kWarp) {
      const int64_t at = code * a.dim + d;
      const float average = lerp(a.embed_avg[at], a.sums[at], a.one_minus_decay);
      a.embed_avg[at] = average;
      if (a.normalize)
        squares += static_cast<double>(average) * static_cast<double>(average);
      else
        a.codebook[at] = average / smoothed;
    }
    if (a.normalize) {
      const double length = sqrt(warp_sum(squares));
      // An average that is too short to have a direction leaves the code as it is. Each lane reads what it
      // wrote itself.
      for (int64_t d = lane; length >= 0x1p-100 && d < a.dim; d += kWarp) {
        const int64_t at = code * a.dim + d;
        a.codebook[at] = static_cast<float>(a.embed_avg[at] / length);
      }
    }
    __syncwarp();
    if (lane == 0) a.cluster_size[code] = size;
  }
}

}  // namespace
}  // namespace vq_cuda

extern "C" {

int64_t vq_cuda_ema_workspace(int64_t codes) {
  return vq_cuda::ceil_div(codes, vq_cuda::kEmaThreads) * 16;
}

int vq_cuda_ema_update(float* codebook, float* cluster_size, float* embed_avg, const void* counts,
                       int counts_are_float, const float* sums, int64_t codes, int64_t dim,
                       float one_minus_decay, float eps, int normalize, void* workspace,
                       int64_t workspace_bytes, VqCudaStream stream) {
  using namespace vq_cuda;
  if (codes == 0) return cudaSuccess;
  if (workspace_bytes < vq_cuda_ema_workspace(codes)) return cudaErrorInvalidValue;
  cudaError_t error = select_device(stream.device);
  int processors = 0, resident = 0;
  if (error == cudaSuccess)
    error = device_attribute(&processors, cudaDevAttrMultiProcessorCount, stream.device);
  const int64_t shared = kEmaWarps * sizeof(double);
  if (error == cudaSuccess) error = resident_blocks(&resident, ema_kernel, kEmaThreads, shared);
  if (error != cudaSuccess) return error;
  const int64_t wanted = ceil_div(codes, kEmaWarps), most = static_cast<int64_t>(processors) * resident;
  EmaArgs a{};
  a.codebook = codebook;
  a.cluster_size = cluster_size;
  a.embed_avg = embed_avg;
  a.counts = counts;
  a.counts_are_float = counts_are_float != 0;
  a.sums = sums;
  a.codes = codes;
  a.dim = dim;
  a.one_minus_decay = one_minus_decay;
  a.eps = eps;
  a.normalize = normalize != 0;
  a.slice_total = static_cast<double*>(workspace);
  a.slice_count = a.slice_total + ceil_div(codes, kEmaThreads);
  return launch(ema_kernel, wanted < most ? wanted : most, kEmaThreads, shared, stream, true, a);
}

}  // extern "C"
