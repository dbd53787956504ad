#include "cpu/search.h"

namespace vq_cpu {
namespace {

constexpr int64_t kRowBytes = 256 << 10;  // packed rows of a block
constexpr int kMostRows = 1024;           // of a block

}  // namespace

Search::Search(const VqRows* x, VqPreparedCodebook& codes, const VqSearchOptions& options,
               Interruption* interruption)
    : kernels(codes.kernels),
      x(x),
      first(codes.first),
      precision(options.precision),
      certificate(options.bound_scale),
      interruption(interruption),
      codebook(codes.codebook),
      narrow_factors(codes.narrow_factors),
      narrow(codes.narrow) {
  int64_t most = kRowBytes / (4 * x->dim);
  if (most > kMostRows) most = kMostRows;
  const int64_t share = divide_up(rows(), 64);  // enough blocks for many threads
  if (share < most) most = share;
  block_rows = divide_up(most < 1 ? 1 : most, tile()) * tile();
}

bool BlockSearch::open(Search* search) {
  first_ = search->first;
  return exact_.open(search) && sweep_.open(search, &exact_) &&
         (!first_.matrix || matrix_.open(search, &exact_, &sweep_)) &&
         (!first_.narrow || narrow_.open(search, &exact_, &sweep_));
}

}  // namespace vq_cpu
