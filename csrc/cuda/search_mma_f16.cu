// The tensor-core search for float16 rows, whose 11 bits are two bfloat16 parts; see search_mma.cuh.
#include "search_mma.cuh"

namespace vq_cuda {

cudaError_t launch_search_mma_f16(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream) {
  if (p.products == 1) return launch_search_mma<__half, 1, false>(a, p, stream);
  return launch_search_mma<__half, 3, true>(a, p, stream);
}

}  // namespace vq_cuda
