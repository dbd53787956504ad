// The tensor-core search for float16 rows, whose 11 bits are two bfloat16 parts; see search_mma.cuh.
#include "search_mma.cuh"

namespace vq_cuda {

SearchKernel search_mma_f16(const SearchPlan& p) {
  if (p.products == 1) return search_mma<__half, 1, false>(p);
  return search_mma<__half, 3, true>(p);
}

}  // namespace vq_cuda
