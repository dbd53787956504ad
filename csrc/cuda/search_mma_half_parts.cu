// The tensor-core search with two and three products of float16 parts; see search_mma.cuh.
#include "search_mma.cuh"

namespace vq_cuda {

SearchKernel search_mma_half_parts(const SearchPass& p) {
  if (p.products == 2) return search_mma<__half, 2, kWholeScores, true>(p);
  return search_mma<__half, 3, kWholeScores, true>(p);
}

}  // namespace vq_cuda
