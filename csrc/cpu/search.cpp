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

bool Search::ensure_narrow() {
  bool ok = true;
#pragma omp critical(vq_narrow_codebook)
  if (!narrow.prepared())
    ok = narrow.prepare(codebook, first.narrow, certificate.narrow(codebook.dim, first.narrow->rounds), 1, nullptr);
  return ok;
}

bool Search::ensure_finer() {
  bool ok = true;
#pragma omp critical(vq_finer_codebook)
  if (!finer.prepared())
    ok = finer.prepare(codebook, first.finer, certificate.narrow(codebook.dim, first.finer->rounds), 1, nullptr);
  return ok;
}

bool BlockSearch::open(Search* search) {
  first_ = search->first;
  if (!exact_.open(search) || !sweep_.open(search, &exact_)) return false;
  if (first_.matrix && first_.narrow && rows_are_few(search->x, search->codebook.count, search->precision)) {
    if (!search->ensure_narrow()) return false;
    if (search->narrow.bounded()) first_.matrix = nullptr;
  }
  NarrowSearch* finer = first_.finer ? &finer_ : nullptr;
  if (first_.matrix) return matrix_.open(search, &exact_, &sweep_, first_.narrow ? &narrow_ : nullptr, finer);
  return !first_.narrow || narrow_.open(search, search->narrow, &exact_, &sweep_, finer);
}

}  // namespace vq_cpu
