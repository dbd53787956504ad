// The tensor-core search for bfloat16 rows and codes, which are not rounded at all; see search_mma.cuh.
#include "search_mma.cuh"

namespace vq_cuda {

SearchKernel search_mma_bf16(const SearchPass& p) {
  switch (p.epilogue) {
    case kWholeScores:
      return search_mma<__nv_bfloat16, 1, kWholeScores, false>(p);
    case kPackedBest:
      return search_mma<__nv_bfloat16, 1, kPackedBest, false>(p);
    case kPackedScores:
      break;
  }
  return search_mma<__nv_bfloat16, 1, kPackedScores, true>(p);
}

}  // namespace vq_cuda
