#include "cpu/search.h"

namespace vq_cpu {
namespace {

constexpr int64_t kRowBytes = 256 << 10;  // packed rows of a block
constexpr int kMostRows = 1024;           // of a block
// Below this, padding the dimensions to the depth of a tile costs more than the matrix unit gains.
constexpr int64_t kMatrixLeastDim = 16;

}  // namespace

Search::Search(const VqRows* x, const VqSearchOptions& options, Interruption* interruption)
    : kernels(kernels_in_use()),
      matrix(x->dim >= kMatrixLeastDim ? matrix_kernels_in_use() : nullptr),
      x(x),
      precision(options.precision),
      certificate(options.bound_scale),
      interruption(interruption) {
  int64_t most = kRowBytes / (4 * x->dim);
  if (most > kMostRows) most = kMostRows;
  const int64_t share = divide_up(rows(), 64);  // enough blocks for many threads
  if (share < most) most = share;
  block_rows = divide_up(most < 1 ? 1 : most, tile()) * tile();
}

bool Search::prepare(const VqCodes* codes, int metric, int threads) {
  return codebook.prepare(codes, metric, kernels, matrix, threads, interruption);
}

bool BlockSearch::open(Search* search) {
  matrix_ = search->matrix != nullptr;
  return exact_.open(search) && sweep_.open(search, &exact_) &&
         (!matrix_ || matrix_search_.open(search, &exact_, &sweep_));
}

}  // namespace vq_cpu
