// The nearest code of a block of rows: what nearest_code.cpp and vector_quantize.cpp share. Three searches
// stand behind it: float32 sweeps, a matrix unit, and one of their own for a handful of rows.
#pragma once

#include "cpu/certificate.h"
#include "cpu/codebook.h"
#include "cpu/exact_search.h"
#include "cpu/kernels.h"
#include "cpu/matrix_search.h"
#include "cpu/support.h"
#include "cpu/sweep_search.h"

namespace vq_cpu {

// What all threads of one call share.
struct Search {
  const Kernels* kernels;
  const MatrixKernels* matrix;  // null: float32 sweeps alone
  const VqRows* x;
  int precision;
  Certificate certificate;
  Interruption* interruption;
  int64_t block_rows;  // from the shapes alone
  Codebook codebook;

  Search(const VqRows* x, const VqSearchOptions& options, Interruption* interruption);
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
  bool run(const RowBlock& block) { return matrix_ ? matrix_search_.run(block) : sweep_.run(block); }

 private:
  bool matrix_ = false;
  ExactSearch exact_;
  SweepSearch sweep_;
  MatrixSearch matrix_search_;
};

}  // namespace vq_cpu
