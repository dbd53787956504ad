// The nearest code of a block of rows: what nearest_code.cpp and vector_quantize.cpp share. Four searches
// stand behind it: float32 sweeps, a matrix unit, int8 or bfloat16 on vector units, and one for a handful of rows.
#pragma once

#include "cpu/certificate.h"
#include "cpu/codebook.h"
#include "cpu/exact_search.h"
#include "cpu/first_pass.h"
#include "cpu/kernels.h"
#include "cpu/matrix_search.h"
#include "cpu/narrow_codebook.h"
#include "cpu/narrow_search.h"
#include "cpu/support.h"
#include "cpu/sweep_search.h"

namespace vq_cpu {

// What all threads of one call share.
struct Search {
  const Kernels* kernels;
  const VqRows* x;
  FirstPass first;
  int precision;
  Certificate certificate;
  Interruption* interruption;
  int64_t block_rows;  // from the shapes alone
  Codebook codebook;
  NarrowFactors narrow_factors;  // and `narrow`: where the first pass is narrow
  NarrowCodebook narrow;

  Search(const VqRows* x, int64_t codes, const VqSearchOptions& options, Interruption* interruption);
  // False if there is no memory or it was interrupted.
  bool prepare(const VqCodes* codes, int metric, int threads);
  int64_t rows() const { return x->batches * x->rows; }
  int64_t blocks() const { return divide_up(rows(), block_rows); }
  int tile() const { return kernels->lanes * kernels->vectors; }
};

// One thread's search, a block at a time.
class BlockSearch {
 public:
  // False if there is no memory; so does run, or if it was interrupted.
  bool open(Search* search);
  bool run(const RowBlock& block) {
    return first_.matrix ? matrix_.run(block) : first_.narrow ? narrow_.run(block) : sweep_.run(block);
  }

 private:
  FirstPass first_ = {};
  ExactSearch exact_;
  SweepSearch sweep_;
  MatrixSearch matrix_;
  NarrowSearch narrow_;
};

}  // namespace vq_cpu
