// The tensor-core search for bfloat16 rows, which are not rounded at all; see search_mma.cuh.
#include "search_mma.cuh"

namespace vq_cuda {

cudaError_t launch_search_mma_bf16(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream) {
  if (p.products == 2) return launch_search_mma<__nv_bfloat16, 2, true>(a, p, stream);
  if (a.certify) return launch_search_mma<__nv_bfloat16, 1, true>(a, p, stream);
  return launch_search_mma<__nv_bfloat16, 1, false>(a, p, stream);
}

}  // namespace vq_cuda
