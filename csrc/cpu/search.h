// The nearest code of a block of rows against a prepared codebook: what nearest_code.cpp and vector_quantize.cpp
// share. Three searches stand behind it: float32 sweeps, a matrix unit, int8 or bfloat16 on vector units. Each goes on with
// what the one before gives up.
#pragma once

#include "cpu/certificate.h"
#include "cpu/exact_search.h"
#include "cpu/kernels.h"
#include "cpu/matrix_search.h"
#include "cpu/narrow_search.h"
#include "cpu/prepared_codebook.h"
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
  Codebook& codebook;
  NarrowCodebook& narrow;
  NarrowCodebook& finer;
  int64_t block_rows;  // from the shapes alone

  Search(const VqRows* x, VqPreparedCodebook& codes, const VqSearchOptions& options, Interruption* interruption);
  // Prepare `narrow` after a matrix unit, and `finer`. Thread-safe. False if there is no memory.
  bool ensure_narrow();
  bool ensure_finer();
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
  NarrowSearch narrow_, finer_;
};

}  // namespace vq_cpu
