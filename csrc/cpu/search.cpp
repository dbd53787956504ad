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
      narrow(codes.narrow),
      finer(codes.finer) {
  int64_t most = kRowBytes / (4 * x->dim);
  if (most > kMostRows) most = kMostRows;
  const int64_t share = divide_up(rows(), 64);  // enough blocks for many threads
  if (share < most) most = share;
  block_rows = divide_up(most < 1 ? 1 : most, tile()) * tile();
}

bool Search::ensure_finer() {
  bool ok = true;
#pragma omp critical(vq_finer_codebook)
  if (!finer.prepared())
    ok = finer.prepare(codebook, first.finer, certificate.narrow(codebook.dim, codebook.dim + 2), 1, nullptr);
  return ok;
}

bool BlockSearch::open(Search* search) {
  first_ = search->first;
  return exact_.open(search) && sweep_.open(search, &exact_) &&
         (!first_.matrix || matrix_.open(search, &exact_, &sweep_)) &&
         (!first_.narrow || narrow_.open(search, search->narrow, &exact_, &sweep_, first_.finer ? &finer_ : nullptr));
}

}  // namespace vq_cpu
