// The table of kernels of a narrow first pass over V, N and narrow_products (included before).
#pragma once

#include "cpu/narrow_body.h"
#include "cpu/narrow_pack_body.h"
#include "cpu/narrow_score_body.h"

namespace vq_cpu {
namespace {

constexpr NarrowKernels narrow_table() {
  NarrowKernels table{};
  table.lanes = V::W;
  table.vectors = V::VECTORS;
  table.group = V::PANEL;
  table.rounds = N::ROUNDS;
  table.seven_bits = N::SEVEN_BITS;
  table.steps = narrow_steps;
  table.measure_codes = narrow_measure_codes;
  table.pack_codes = narrow_pack_codes;
  table.pack_rows = narrow_pack_rows;
  table.search = narrow_search;
  table.open_codes = narrow_open_codes;
  table.quick_score = narrow_quick_score;
  table.score = narrow_score;
  table.peak = narrow_peak;
  return table;
}

}  // namespace
}  // namespace vq_cpu
