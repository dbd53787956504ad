// The tensor-core search for bfloat16 rows, which are not rounded at all; see search_mma.cuh.
#include "search_mma.cuh"

namespace vq_cuda {

SearchKernel search_mma_bf16(const SearchPlan& p) {
  if (p.products == 2) return search_mma<__nv_bfloat16, 2, true>(p);
  if (p.certify) return search_mma<__nv_bfloat16, 1, true>(p);
  return search_mma<__nv_bfloat16, 1, false>(p);
}

}  // namespace vq_cuda
