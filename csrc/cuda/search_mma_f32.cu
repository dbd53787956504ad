// The tensor-core search for float32 rows; see search_mma.cuh.
#include "search_mma.cuh"

namespace vq_cuda {

cudaError_t launch_search_mma_f32(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream) {
  if (p.products == 1) return launch_search_mma<float, 1, false>(a, p, stream);
  return launch_search_mma<float, 3, true>(a, p, stream);
}

}  // namespace vq_cuda
