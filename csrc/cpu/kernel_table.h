// The table of kernels over V (one of simd_*.h, included before): each compiled instruction set's own.
#pragma once

#include "cpu/backward_body.h"
#include "cpu/candidates_body.h"
#include "cpu/codes_body.h"
#include "cpu/difference_body.h"
#include "cpu/direct_body.h"
#include "cpu/exact_body.h"
#include "cpu/fixed_body.h"
#include "cpu/peak_body.h"
#include "cpu/rows_body.h"
#include "cpu/search_body.h"

namespace vq_cpu {
namespace {

int64_t peak_float32(int64_t rounds) {
  return 2 * V::W * peak_of(rounds, V::set(0.0f), [](V::F sum, V::F a, V::F b) { return V::fma(a, b, sum); });
}

constexpr Kernels kernel_table() {
  Kernels table{};
  table.lanes = V::W;
  table.vectors = V::VECTORS;
  table.panel = V::PANEL;
  table.load_rows = load_rows;
  table.store_rows = store_rows;
  table.pack_tile = pack_tile;
  table.sweep = sweep;
  table.collect = collect;
  table.sweep_differences = sweep_differences;
  table.half_norms = half_norms;
  table.dot_rows = DOT_ROWS;
  table.sweep_dots = sweep_dots;
  table.sweep_rows = sweep_rows;
  table.exact_scan = exact_scan;
  table.wide_scan = wide_scan;
  table.fixed_scan = fixed_scan;
  table.inspect_codes = inspect_codes;
  table.square_distances = square_distances;
  table.pack_code = pack_code_float32;
  table.score_rows = score_rows;
  table.score_listed = score_listed;
  table.quantize_rows = quantize_rows;
  table.add_rows = add_rows;
  table.backward_rows = backward_rows;
  table.ema_row = ema_row;
  table.peak = peak_float32;
  return table;
}

}  // namespace
}  // namespace vq_cpu
