// The tensor-core search with one product of float16 parts: float16 rows and codes as they are, the first pass of
// the others, and all of them with less precision; see search_mma.cuh.
#include "search_mma.cuh"

namespace vq_cuda {

SearchKernel search_mma_half(const SearchPass& p) {
  switch (p.epilogue) {
    case kWholeScores:
      return search_mma<__half, 1, kWholeScores, false>(p);
    case kPackedBest:
      return search_mma<__half, 1, kPackedBest, false>(p);
    case kPackedScores:
      break;
  }
  return p.chunked ? search_mma<__half, 1, kPackedScores, true>(p) : search_mma<__half, 1, kPackedScores, false>(p);
}

}  // namespace vq_cuda
