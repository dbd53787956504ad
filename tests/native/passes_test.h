// Which pass takes how many rows of a search that begins with a matrix unit, counted by kernels that stand before those
// of a prepared codebook.
#pragma once

#include <math.h>

#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/prepared_codebook.h"

namespace {

// Rows that a pass has taken; of `scans`, which eight rows share, calls.
struct RowsTaken {
  int64_t tiles, int8, bfloat16, products, differences, scans;
};

RowsTaken taken;
const vq_cpu::Kernels* float32_kernels;
const vq_cpu::MatrixKernels* tile_kernels;
const vq_cpu::NarrowKernels *int8_kernels, *bfloat16_kernels;

// A prepared codebook whose kernels count.
class CountedCodebook {
 public:
  CountedCodebook(const VqCodes* codes, const VqSearchOptions* options) {
    using namespace vq_cpu;
    expect(vq_cpu_prepare_codebook(codes, options, 1, &prepared_) == VQ_OK, "status", 9);
    FirstPass& first = prepared_->first;
    float32_kernels = prepared_->kernels;
    tile_kernels = first.matrix;
    int8_kernels = first.narrow;
    bfloat16_kernels = first.finer;
    float32_ = *float32_kernels;
    tiles_ = *tile_kernels;
    int8_ = *int8_kernels;
    bfloat16_ = *bfloat16_kernels;
    float32_.sweep = [](const BestSweep* sweep) {
      if (sweep->first_code == 0) taken.products += sweep->vectors * float32_kernels->lanes;
      float32_kernels->sweep(sweep);
    };
    float32_.sweep_differences = [](const DifferenceSweep* sweep) {
      for (int i = 0; sweep->first_code == 0 && i < sweep->vectors * float32_kernels->lanes; ++i)
        taken.differences += sweep->limit[i] > 0.0f;
      float32_kernels->sweep_differences(sweep);
    };
    float32_.wide_scan = [](auto... arguments) {
      ++taken.scans;
      return float32_kernels->wide_scan(arguments...);
    };
    tiles_.pack_rows = [](auto... arguments) {
      taken.tiles += kMatrixRows / 2;
      tile_kernels->pack_rows(arguments...);
    };
    int8_.pack_rows = [](const VqRows* x, int64_t row, Centring centring, float* scratch, NarrowTile* tile) {
      taken.int8 += tile->n;
      int8_kernels->pack_rows(x, row, centring, scratch, tile);
    };
    bfloat16_.pack_rows = [](const VqRows* x, int64_t row, Centring centring, float* scratch, NarrowTile* tile) {
      taken.bfloat16 += tile->n;
      bfloat16_kernels->pack_rows(x, row, centring, scratch, tile);
    };
    prepared_->kernels = &float32_;
    first.matrix = &tiles_;
    first.narrow = &int8_;
    first.finer = &bfloat16_;
  }
  CountedCodebook(const CountedCodebook&) = delete;
  ~CountedCodebook() { vq_cpu_release_codebook(prepared_); }
  operator VqPreparedCodebook*() const { return prepared_; }

 private:
  VqPreparedCodebook* prepared_ = nullptr;
  vq_cpu::Kernels float32_;
  vq_cpu::MatrixKernels tiles_;
  vq_cpu::NarrowKernels int8_, bfloat16_;
};

constexpr int64_t kPassDim = 64, kPassCodes = 1024;
// 32 blocks of a tile of float32 rows.
constexpr int64_t kPassRows = 32 * 48;
// Of these the first, and the next after 15 that another pass begins.
constexpr int64_t kTriedRows = 2 * 48;

// Normal numbers times `scale`.
struct Inputs {
  std::vector<float> rows, codes;

  Inputs(int64_t n, float scale, std::mt19937& random)
      : rows(size_t(n * kPassDim)), codes(size_t(kPassCodes * kPassDim)) {
    std::normal_distribution<float> normal;
    for (float& v : codes) v = scale * normal(random);
    for (float& v : rows) v = scale * normal(random);
  }
  void lengthen_codes(int64_t count, float factor) {
    for (int64_t i = 0; i < count * kPassDim; ++i) codes[i] *= factor;
  }
  void shorten_codes_to_one() {
    for (int64_t j = 0; j < kPassCodes; ++j) {
      double square = 0.0;
      for (int64_t d = 0; d < kPassDim; ++d) square += double(codes[j * kPassDim + d]) * double(codes[j * kPassDim + d]);
      for (int64_t d = 0; d < kPassDim; ++d) codes[j * kPassDim + d] /= float(sqrt(square));
    }
  }
  // Every `step`-th row.
  void clear_rows(int64_t step) {
    for (size_t i = 0; i < rows.size(); ++i)
      if (int64_t(i) / kPassDim % step == 0) rows[i] = 0.0f;
  }
  // Rows of equal numbers, for which every second code, the one before in reverse, is as near as that. The other half of
  // the codes has the opposite signs, so that their mean is 0.
  void tie_codes() {
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = rows[i / kPassDim * kPassDim];
    for (int64_t j = 1; j < kPassCodes; j += 2)
      for (int64_t d = 0; d < kPassDim; ++d) codes[j * kPassDim + d] = codes[j * kPassDim - 1 - d];
    for (size_t i = 0, half = codes.size() / 2; i < half; ++i) codes[half + i] = -codes[i];
  }
  void part(float distance) {
    for (std::vector<float>* values : {&rows, &codes})
      for (size_t i = 0; i < values->size(); ++i)
        if (int64_t(i) / kPassDim % 2) (*values)[i] += distance;
  }
};

// Searches twice with one prepared codebook, compares with the truth and leaves what the second search took. A fast
// search may find other codes.
void search_counted(const char* name, const Inputs& inputs, int dtype, int metric, int precision = VQ_EXACT) {
  where = std::string("rows of passes, ") + name + ", dtype " + std::to_string(dtype);
  const int64_t n = int64_t(inputs.rows.size()) / kPassDim;
  const Tensor x(inputs.rows, n, kPassDim, dtype, dtype == VQ_FLOAT32 ? kMaps : kOddSlice);
  const VqCodes codebook = {inputs.codes.data(), kPassCodes, kPassDim, VQ_FLOAT32};
  const VqSearchOptions options = {metric, precision, 1.0};
  const CountedCodebook prepared(&codebook, &options);
  std::vector<int64_t> indices;
  for (int turn = 0; turn < 2; ++turn) {
    taken = {};
    indices.assign(size_t(n), -7);
    expect(vq_cpu_nearest_code(&x.view, &codebook, prepared, &options, 1, indices.data()) == VQ_OK, "status", 10);
    for (int64_t i = 0; i < n && precision != VQ_FAST; ++i)
      expect(indices[i] == nearest(&x.values[i * kPassDim], inputs.codes, kPassCodes, kPassDim, metric == VQ_L2), "index",
             i);
  }
}

void expect_taken(int64_t tiles, int64_t int8, int64_t float32) {
  expect(taken.tiles == tiles, "number of rows of tiles", taken.tiles);
  expect(taken.int8 == int8, "number of rows of int8", taken.int8);
  expect(taken.products + taken.differences + 8 * taken.scans <= float32, "number of rows of float32",
         taken.products + taken.differences + 8 * taken.scans);
}

// In the first pass's own tiles what they can decide, in int8 what they give up, in float32 what that gives up.
void check_rows_given_up(int dtype, std::mt19937& random) {
  const bool wide = dtype != VQ_FLOAT16;  // holds large and small numbers
  for (const float scale : {1.0f, 1e-30f, 1e18f}) {
    if (scale != 1.0f && !wide) continue;
    search_counted("values times a factor", Inputs(kPassRows, scale, random), dtype, VQ_L2);
    expect_taken(kPassRows, 0, 0);
    Inputs tied(96, scale, random);
    tied.tie_codes();
    search_counted("ties times a factor", tied, dtype, VQ_L2);
  }
  for (const float factor : {1e4f, 1e30f}) {
    Inputs inputs(kPassRows, 1.0f, random);
    inputs.lengthen_codes(3, factor);
    search_counted("long codes", inputs, dtype, VQ_L2);
    expect_taken(kTriedRows, kPassRows, 0);
  }
  {
    Inputs inputs(kPassRows, 1.0f, random);
    inputs.lengthen_codes(1, 1e30f);
    search_counted("a long code, fast", inputs, dtype, VQ_L2, VQ_FAST);
    expect_taken(kPassRows, kPassRows, 0);
    // Int8 has no bound for products with it.
    search_counted("a long code, products", inputs, dtype, VQ_COSINE);
    expect(taken.tiles == kPassRows, "number of rows of tiles", taken.tiles);
    expect(taken.int8 == 0, "number of rows of int8", taken.int8);
  }
  for (const int step : {1, 2, 9}) {
    Inputs inputs(kPassRows, 1.0f, random);
    inputs.shorten_codes_to_one();
    inputs.clear_rows(step);
    search_counted("zero rows, unit codes", inputs, dtype, VQ_L2);
    const int64_t zeros = (kPassRows + step - 1) / step;
    // Equal rows are settled once.
    expect_taken(step == 1 ? kTriedRows : kPassRows, zeros, 1 + 8);
  }
  Inputs inputs(kPassRows, 1.0f, random);
  inputs.part(1e4f);
  search_counted("two clusters", inputs, dtype, VQ_L2);
  expect(taken.tiles == kTriedRows, "number of rows of tiles", taken.tiles);
  expect(taken.int8 > 0 && taken.int8 < kPassRows / 4, "number of rows of int8", taken.int8);
  expect(taken.bfloat16 > 0 && taken.bfloat16 < kPassRows / 4, "number of rows of bfloat16", taken.bfloat16);
}

// So few that tiles would be empty begin in int8, as long as a fast search of a tensor begins there too.
void check_few_rows(int dtype, std::mt19937& random) {
  for (const int64_t n : {1, 7, 64}) {
    search_counted("few rows", Inputs(n, 1.0f, random), dtype, VQ_L2);
    expect_taken(0, n, 0);
    search_counted("few products", Inputs(n, 1.0f, random), dtype, VQ_COSINE);
    expect_taken(0, n, 0);
  }
  search_counted("not few rows", Inputs(96, 1.0f, random), dtype, VQ_L2);
  expect_taken(96, 0, 0);
  search_counted("few rows, fast", Inputs(16, 1.0f, random), dtype, VQ_L2, VQ_FAST);
  expect_taken(16, 0, 0);
}

void check_rows_of_passes(const std::string& isa) {
  where = isa + ", passes";
  const vq_cpu::FirstPass first = vq_cpu::choose_first_pass(kPassDim, kPassCodes);
  expect(first.matrix && first.narrow && first.finer, "passes", 0);
  if (!(first.matrix && first.narrow && first.finer)) return;
  std::mt19937 random(11);
  for (const int dtype : {VQ_FLOAT32, VQ_BFLOAT16, VQ_FLOAT16}) {
    check_rows_given_up(dtype, random);
    check_few_rows(dtype, random);
  }
}

}  // namespace
