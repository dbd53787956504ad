#include "cpu/search.h"

namespace vq_cpu {
namespace {

constexpr int64_t kRowBytes = 256 << 10;  // packed rows of a block
constexpr int kMostRows = 1024;           // of a block

}  // namespace

Search::Search(const VqRows* x, int64_t codes, const VqSearchOptions& options, Interruption* interruption)
    : kernels(kernels_in_use()),
      x(x),
      first(choose_first_pass(x, codes)),
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
  if (!codebook.prepare(codes, metric, kernels, first, threads, interruption)) return false;
  if (!first.narrow) return true;
  const int64_t dim = codes->dim;
  narrow_factors = certificate.narrow(dim, first.kind == VQ_INT8_FIRST ? 0 : dim + 2);
  const int team = threads_for(threads, codes->count * dim);
  if (!narrow.prepare(codebook, first.narrow, narrow_factors, team, interruption)) return false;
  if (narrow.bounded()) return true;
  first = FirstPass{VQ_FLOAT32_FIRST};
  return codebook.pack(kernels, team, interruption);
}

bool BlockSearch::open(Search* search) {
  first_ = search->first;
  return exact_.open(search) && sweep_.open(search, &exact_) &&
         (!first_.matrix || matrix_.open(search, &exact_, &sweep_)) &&
         (!first_.narrow || narrow_.open(search, &exact_, &sweep_));
}

}  // namespace vq_cpu
