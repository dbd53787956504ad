// The tensor-core search for float32 rows; see search_mma.cuh.
#include "search_mma.cuh"

namespace vq_cuda {

SearchKernel search_mma_f32(const SearchPlan& p) {
  if (p.products == 1) return search_mma<float, 1, false>(p);
  return search_mma<float, 3, true>(p);
}

}  // namespace vq_cuda
