#include "cpu/codebook.h"

#include <math.h>
#include <string.h>

#include "cpu/exact.h"

namespace {

constexpr int CODES_A_TASK = 64;

}  // namespace

const float* codes_as_float(const VqCodes* codes, const VqKernels* kernels, int threads,
                            Buffer<float>& storage) {
  if (codes->dtype == VQ_F32) return static_cast<const float*>(codes->data);
  if (!storage.resize(codes->k * codes->d)) return nullptr;
  const VqRows rows = {const_cast<void*>(codes->data), 1, codes->k, codes->d, 0, codes->d, 1, codes->dtype};
  const int64_t tasks = divide_up(codes->k, CODES_A_TASK);
  parallel_for(threads_for(threads, codes->k * codes->d), tasks, [&](int64_t t) {
    const int64_t first = t * CODES_A_TASK;
    const int64_t n = codes->k - first < CODES_A_TASK ? codes->k - first : CODES_A_TASK;
    kernels->load_rows(&rows, first, int(n), storage + first * codes->d);
  });
  return storage;
}

bool Codebook::prepare(const VqCodes* given, int metric, const VqKernels* kernels, const VqTileKernels* tiles,
                       int threads) {
  k = given->k;
  d = given->d;
  l2 = metric == VQ_L2;
  codes = codes_as_float(given, kernels, threads, converted_);
  if (!codes || !usable.resize(k) || !centre.resize(d) || !hashes_.resize(k)) return false;
  const int team = threads_for(threads, k * d);
  find_usable(kernels, team);
  if (!drop_copies() || !find_centre(kernels, team)) return false;
  return tiles ? pack_tiles(tiles, team) : pack(kernels, team);
}

void Codebook::find_usable(const VqKernels* kernels, int threads) {
  parallel_for(threads, divide_up(k, CODES_A_TASK), [&](int64_t t) {
    const int64_t first = t * CODES_A_TASK, n = k - first < CODES_A_TASK ? k - first : CODES_A_TASK;
    kernels->inspect_codes(codes + first * d, n, d, usable + first, hashes_ + first);
  });
}

// A copy of an earlier code never wins, for the lowest index does: unusable, so that a codebook with
// many equal codes (all zero before initialisation) is not ambiguous everywhere.
bool Codebook::drop_copies() {
  int64_t slots = 16;
  while (slots < 2 * k) slots *= 2;
  Buffer<int64_t> table;
  if (!table.resize(slots)) return false;
  for (int64_t s = 0; s < slots; ++s) table[s] = -1;
  for (int64_t j = 0; j < k; ++j) {
    if (!usable[j]) continue;
    int64_t s = int64_t(hashes_[j] & uint64_t(slots - 1));
    for (; table[s] >= 0; s = (s + 1) & (slots - 1)) {
      const int64_t earlier = table[s];
      if (hashes_[earlier] == hashes_[j] && memcmp(codes + earlier * d, codes + j * d, size_t(d) * 4) == 0) {
        usable[j] = 0;
        break;
      }
    }
    if (usable[j]) table[s] = j;
  }
  return true;
}

// The mean of the usable codes. Subtracting the same vector from rows and codes changes no argmin and
// makes the products, and with them the bound, small where all values share a large offset.
bool Codebook::find_centre(const VqKernels* kernels, int threads) {
  const int64_t tasks = divide_up(k, CODES_A_TASK);
  Buffer<int64_t> task_of;  // -1 for codes left out
  Buffer<double> sums;      // [tasks][d], added in order
  if (!task_of.resize(k) || !sums.resize(tasks * d)) return false;
  int64_t count = 0;
  for (int64_t j = 0; j < k; ++j) {
    task_of[j] = usable[j] ? j / CODES_A_TASK : -1;
    count += usable[j];
  }
  parallel_for(threads, tasks, [&](int64_t t) {
    const int64_t first = t * CODES_A_TASK, n = k - first < CODES_A_TASK ? k - first : CODES_A_TASK;
    for (int64_t i = t * d; i < (t + 1) * d; ++i) sums[i] = 0.0;
    kernels->add_rows(codes + first * d, d, task_of + first, int(n), d, 0, tasks, sums);
  });
  for (int64_t t = 1; t < tasks; ++t)
    for (int64_t i = 0; i < d; ++i) sums[i] += sums[t * d + i];
  double square = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    centre[i] = count ? float(sums[i] / double(count)) : 0.0f;
    square += double(centre[i]) * double(centre[i]);
  }
  centre_norm = sqrt(square);
  return true;
}

bool Codebook::pack(const VqKernels* kernels, int threads) {
  const int panel = kernels->panel;
  panel_count = divide_up(k, panel);
  if (!bias.resize(panel_count * panel) || !panels.resize(panel_count * panel * d)) return false;
  double norm2 = 0.0;
  const int64_t codes_a_task = CODES_A_TASK / panel * panel;
  parallel_for(threads, divide_up(panel_count * panel, codes_a_task), [&](int64_t t) {
    double task_norm2 = 0.0;
    const int64_t last = (t + 1) * codes_a_task;
    for (int64_t j = t * codes_a_task; j < last && j < panel_count * panel; ++j) {
      float* out = panels + j / panel * d * panel + j % panel;
      if (j >= k || !usable[j]) {
        for (int64_t i = 0; i < d; ++i) out[i * panel] = 0.0f;
        bias[j] = -INFINITY;
        continue;
      }
      const double square = kernels->pack_code(codes + j * d, row_centre(), d, out, panel);
      bias[j] = l2 ? float(-0.5 * square) : 0.0f;
      // Overflow makes this infinite, the bound with it, and every row goes to the exact scan.
      if (!(square <= task_norm2)) task_norm2 = square;
    }
#pragma omp critical(vq_codebook_largest)
    if (!(task_norm2 <= norm2)) norm2 = task_norm2;
  });
  largest_norm = sqrt(norm2);
  largest_bias = l2 ? 0.5 * norm2 : 0.0;
  return true;
}

bool Codebook::pack_tiles(const VqTileKernels* tiles, int threads) {
  tile_steps = divide_up(d, VQ_TILE_DEPTH);
  tile_blocks = divide_up(k, VQ_TILE_CODES);
  const int64_t size = tile_steps * VQ_TILE_DEPTH * VQ_TILE_CODES;
  if (!tile_codes.resize(tile_blocks * size) || !tile_bias.resize(tile_blocks * VQ_TILE_CODES)) return false;
  constexpr int BLOCKS_A_TASK = 4;
  parallel_for(threads, divide_up(tile_blocks, BLOCKS_A_TASK), [&](int64_t t) {
    float norm2 = 0.0f, error2 = 0.0f, greatest = 0.0f;
    for (int64_t b = t * BLOCKS_A_TASK; b < tile_blocks && b < (t + 1) * BLOCKS_A_TASK; ++b) {
      const int64_t first = b * VQ_TILE_CODES;
      const int n = int(k - first < VQ_TILE_CODES ? k - first : int64_t(VQ_TILE_CODES));
      tiles->pack_codes(codes + first * d, usable + first, row_centre(), n, d, l2, tile_codes + b * size,
                        tile_bias + first, &norm2, &error2, &greatest);
    }
#pragma omp critical(vq_codebook_largest)
    {
      if (!(norm2 <= tile_norm2)) tile_norm2 = norm2;
      if (!(error2 <= tile_error2)) tile_error2 = error2;
      if (!(greatest <= tile_largest_bias)) tile_largest_bias = greatest;
    }
  });
  return true;
}

bool Codebook::need_panels(const VqKernels* kernels) {
  bool ok = true;
#pragma omp critical(vq_codebook_panels)
  ok = panels.get() != nullptr || pack(kernels, 1);
  return ok;
}

bool Codebook::need_squares() {
  bool ok = true;
#pragma omp critical(vq_codebook_squares)
  {
    if (l2 && !squares_low.get()) {
      ok = squares_high.resize(k) && squares_low.resize(k);
      for (int64_t j = 0; ok && j < k; ++j) {
        const ExactSum sum = half_square(codes + j * d, d);
        squares_high[j] = sum.high;
        squares_low[j] = sum.low;
      }
    }
  }
  return ok;
}

// Write x' and e' for row and code minus the centre c, x^ and e^ for their float32 roundings, u = 2^-24
// and b = |e'|^2/2. The real score is t = x'.e' - b (minus a term common to all codes). Computed is
// t^ = fl(-b^ + sum_d x^_d e^_d):
//   rounding of the sums, any order (Higham 2002, section 3.1)  gamma_{d+1} (|x^| |e^| + b^)
//   x^ for x' and e^ for e'                                     2 u (1 + u) |x^| |e^|
//   b^ for b                                                    u b
//   subnormal products and sums                                 (d + 2) 2^-149
// with sum_d |x^_d| |e^_d| <= |x^| |e^| (Cauchy-Schwarz). In all less than
//   gamma (|x^| max|e^| + max b) + offset,   gamma = n u / (1 - n u),  n = d + 8,
// where the four roundings to spare, the factor 1.01 and the offsets cover the evaluation of |x^| (its
// sum of squares is computed in float32) and of this formula in float32, and the 2^-53 terms of the
// float64 parts. The index is certain if the best score leads by more than twice the bound.
namespace {
double bound_scale = 1.0;

double sum_error(double n) {
  const double u = 0x1p-24;
  return n * u < 0.005 ? n * u / (1.0 - n * u) : INFINITY;
}

// The score that decides in the end is a pair (backends/base.py), off by at most gamma_{2d}^2, u = 2^-53, of
// |e|^2/2 + |x||e| <= (|x| + |e|)^2 (Ogita, Rump and Oishi 2005), on values that were not centred. A leader by
// less than that in real arithmetic need not lead there, and all backends are to agree.
double contract_error(int64_t d) {
  const double n = 2.0 * double(d) + 4.0;
  return bound_scale * 1.1 * n * n * 0x1p-106;
}

double far_from_row(const Codebook& codebook, double norm) { return 1.01 * (norm + 2.0 * codebook.centre_norm); }
}  // namespace

extern "C" void vq_cpu_scale_bound(double factor) { bound_scale = factor; }

Bound bound(const Codebook& codebook) {
  const double n = double(codebook.d) + 8.0;
  Bound result;
  result.gamma = float(bound_scale * 1.01 * sum_error(n));
  result.norm = float(1.01 * codebook.largest_norm);
  result.bias = float(codebook.largest_bias);
  result.error = 0.0f;
  result.norm_offset = float(sqrt(n) * 0x1p-70);
  result.offset = float(bound_scale * n * 0x1p-140);
  result.contract = float(contract_error(codebook.d));
  result.far = float(far_from_row(codebook, codebook.largest_norm));
  return result;
}

// In the matrix unit x^ and e^ are rounded once more, to bfloat16 x~ and e~. With f = x^ - x~ and
// g = e^ - e~ (computed exactly and summed up in their norms, which is less than half the worst case):
//   |x^.e^ - x~.e~| <= |f| |e^| + |x~| |g|,   |x~| <= |x^| + |f|.
// Its products are exact; for its order of summation nothing is assumed, not even rounding to nearest:
// twice the terms stand for truncation. It flushes subnormal products and sums: 2^-126 for each
// operation; operands that it would flush were rounded to zero and are part of f and g.
Bound tile_bound(const Codebook& codebook) {
  const double n = 2.0 * double(codebook.tile_steps * VQ_TILE_DEPTH) + 16.0;
  Bound result;
  result.gamma = float(bound_scale * 1.01 * sum_error(n));
  result.norm_offset = float(sqrt(n) * 0x1p-70);
  result.norm = float(bound_scale * 1.01 * (sqrt(double(codebook.tile_norm2)) + result.norm_offset));
  result.bias = codebook.tile_largest_bias;
  result.error = float(bound_scale * 1.01 * (sqrt(double(codebook.tile_error2)) + result.norm_offset));
  result.offset = float(bound_scale * n * 0x1p-120);
  result.contract = float(contract_error(codebook.d));
  result.far = float(far_from_row(codebook, sqrt(double(codebook.tile_norm2))));
  return result;
}

// sum_d (e_d/2 - x_d) e_d on the values as given, in float64 and any order: gamma_{d+4} (|e|^2/2 + |x| |e|).
// Neither products nor squares of float32 values overflow or underflow there.
double float64_bound(int64_t d, double x_norm, double e_norm) {
  const double error = 1.01 * bound_scale * (double(d) + 8.0) * 0x1p-53;
  return (error + contract_error(d)) * (0.5 * e_norm * e_norm + x_norm * e_norm);
}

// Of VqTileKernels::score, where |e| <= |e'| + |c| and |x| <= |x'| + |c|.
double score_bound(const Codebook& codebook, float norm2) {
  const double offset = codebook.centre_norm + sqrt(double(codebook.d) + 8.0) * 0x1p-70;
  return float64_bound(codebook.d, 1.01 * sqrt(double(norm2)) + offset,
                       1.01 * sqrt(double(codebook.tile_norm2)) + offset);
}
