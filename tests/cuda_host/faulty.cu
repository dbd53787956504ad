// Kernels with the mistakes that the shim is there to find, so that the tests see it find them.
#include "common.cuh"

namespace vq_cuda {
namespace {

constexpr int kFaultyThreads = 64;

enum Fault : int {
  kNone,
  kMissingBarrier,
  kDivergentBarrier,
  kDivergentWarp,
  kOverrun,
  kUninitialised,
  kMissingWait
};

// out[t] = in[63 - t] by way of shared memory.
__global__ void faulty_kernel(const float* in, float* out, int fault) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  const int t = static_cast<int>(threadIdx.x);
  if (fault == kMissingWait) {
    if (t < kFaultyThreads / 4) copy_async16(shared + 4 * t, in + 4 * t);
    copy_async_commit();
  } else if (fault != kUninitialised || t != 5) {
    shared[t] = in[t];
  }
  if (fault == kOverrun && t == 0) shared[kFaultyThreads + 16] = 1.0f;
  if (fault == kDivergentWarp && t % 2 == 0) warp_sum(1.0f);
  if (fault != kMissingBarrier && (fault != kDivergentBarrier || t < 32)) __syncthreads();
  out[t] = shared[kFaultyThreads - 1 - t];
}

}  // namespace
}  // namespace vq_cuda

int run_faulty(const float* in, float* out, int fault) {
  using namespace vq_cuda;
  return launch(faulty_kernel, 1, kFaultyThreads, kFaultyThreads * sizeof(float), VqCudaStream{0, nullptr},
                false, in, out, fault);
}
