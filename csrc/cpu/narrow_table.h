// The table of kernels of a narrow first pass over V and N (included before).
#pragma once

#include "cpu/narrow_body.h"
#include "cpu/narrow_pack_body.h"
#include "cpu/peak_body.h"

namespace vq_cpu {
namespace {

int64_t narrow_peak(int64_t rounds) {
  return 2 * V::W * N::UNIT * peak_of(rounds, V::set(int32_t(0)), N::multiply_add);
}

constexpr NarrowKernels narrow_table() {
  NarrowKernels table{};
  table.lanes = V::W;
  table.vectors = V::VECTORS;
  table.group = V::PANEL;
  table.unit = N::UNIT;
  table.pack_codes = narrow_pack_codes;
  table.pack_rows = narrow_pack_rows;
  table.set_bounds = narrow_set_bounds;
  table.search = narrow_search;
  table.score = narrow_score;
  table.peak = narrow_peak;
  return table;
}

}  // namespace
}  // namespace vq_cpu
