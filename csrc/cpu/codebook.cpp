#include "cpu/codebook.h"

#include <float.h>
#include <math.h>

#include <algorithm>

#include "cpu/exact.h"

namespace vq_cpu {
namespace {

constexpr int kTaskCodes = 64;

// The median of up to 256 of the values that are not left out, evenly spread; 0 without any.
double sampled_median(const double* values, const int64_t* task_of, int64_t count) {
  constexpr int64_t kMostSamples = 256;
  double sample[kMostSamples];
  const int64_t step = divide_up(count, kMostSamples);
  int n = 0;
  for (int64_t j = 0; j < count; j += step)
    if (task_of[j] >= 0) sample[n++] = values[j];
  if (!n) return 0.0;
  std::nth_element(sample, sample + n / 2, sample + n);
  return sample[n / 2];
}

}  // namespace

float unit_scale(double length) {
  if (!(length > 0.0)) return 1.0f;
  int exponent = 1 - ilogb(length);
  exponent = exponent > 126 ? 126 : exponent < -126 ? -126 : exponent;
  return ldexpf(0.5f, exponent);
}

const float* codes_as_float(const VqCodes* codes, const Kernels* kernels, int threads,
                            Interruption* interruption, Buffer<float>& storage) {
  if (codes->dtype == VQ_FLOAT32) return static_cast<const float*>(codes->data);
  if (!storage.resize(codes->count * codes->dim)) return nullptr;
  const VqRows rows = {
      const_cast<void*>(codes->data), 1, codes->count, codes->dim, 0, codes->dim, 1, codes->dtype};
  const int64_t tasks = divide_up(codes->count, kTaskCodes);
  const int team = threads_for(threads, codes->count * codes->dim);
  const bool done = parallel_for(team, tasks, interruption, kTaskCodes * codes->dim, [&](int64_t t) {
    const int64_t first = t * kTaskCodes;
    const int64_t n = codes->count - first < kTaskCodes ? codes->count - first : kTaskCodes;
    kernels->load_rows(&rows, first, int(n), storage + first * codes->dim);
  });
  return done ? storage.get() : nullptr;
}

bool Codebook::prepare(const VqCodes* given, int metric, const Kernels* kernels, const FirstPass& first,
                       int threads, Interruption* interruption) {
  count = given->count;
  dim = given->dim;
  l2 = metric == VQ_L2;
  codes = codes_as_float(given, kernels, threads, interruption, converted_);
  if (!codes || !usable.resize(count) || !centre.resize(dim) || !hashes_.resize(count)) return false;
  const int team = threads_for(threads, count * dim);
  if (!find_usable(kernels, team, interruption) || !drop_copies() ||
      !find_centre(kernels, team, interruption) || !choose_centring())
    return false;
  if (first.matrix) return pack_matrix(first.matrix, team, interruption);
  return first.narrow || pack(kernels, team, interruption);
}

bool Codebook::find_usable(const Kernels* kernels, int threads, Interruption* interruption) {
  return parallel_for(threads, divide_up(count, kTaskCodes), interruption, kTaskCodes * dim, [&](int64_t t) {
    const int64_t first = t * kTaskCodes, n = count - first < kTaskCodes ? count - first : kTaskCodes;
    kernels->inspect_codes(codes + first * dim, n, dim, usable + first, hashes_ + first);
  });
}

// A copy of an earlier code never wins, for the lowest index does: unusable, so that a codebook with
// many equal codes (all zero before initialisation) is not ambiguous everywhere.
bool Codebook::drop_copies() {
  int64_t slots = 16;
  while (slots < 2 * count) slots *= 2;
  Buffer<int64_t> table;
  if (!table.resize(slots)) return false;
  for (int64_t s = 0; s < slots; ++s) table[s] = -1;
  for (int64_t j = 0; j < count; ++j) {
    if (!usable[j]) continue;
    int64_t s = int64_t(hashes_[j] & uint64_t(slots - 1));
    for (; table[s] >= 0; s = (s + 1) & (slots - 1)) {
      const int64_t earlier = table[s];
      if (hashes_[earlier] == hashes_[j] &&
          rows_are_equal(codes + earlier * dim, codes + j * dim, dim)) {
        usable[j] = 0;
        break;
      }
    }
    if (usable[j]) table[s] = j;
  }
  return true;
}

// The mean of the usable codes but for those far out. Subtracting the same vector from rows and codes changes no
// argmin and makes the products, and with them the bound, small where all values share a large offset; for cosine it is
// subtracted from the codes alone. One code of a length of 1e7 would take the mean far from all others.
bool Codebook::find_centre(const Kernels* kernels, int threads, Interruption* interruption) {
  constexpr int kMostRounds = 4;
  constexpr double kFarSquare = 64.0;  // times the median square distance from the mean
  const int64_t tasks = divide_up(count, kTaskCodes);
  Buffer<int64_t> task_of;  // -1 for codes left out
  Buffer<double> square;
  if (!task_of.resize(count)) return false;
  for (int64_t j = 0; j < count; ++j) task_of[j] = usable[j] ? j / kTaskCodes : -1;
  if (!square.resize(count)) return false;
  for (int round = 0; round < kMostRounds; ++round) {
    if (!find_mean(kernels, task_of, threads, interruption)) return false;
    const bool done = parallel_for(threads, tasks, interruption, kTaskCodes * dim, [&](int64_t t) {
      const int64_t first = t * kTaskCodes, n = count - first < kTaskCodes ? count - first : kTaskCodes;
      kernels->square_distances(codes + first * dim, n, dim, centre, square + first);
    });
    if (!done) return false;
    const double median = sampled_median(square, task_of, count);
    typical_norm = sqrt(median);
    bool far = false;
    for (int64_t j = 0; j < count; ++j) {
      if (task_of[j] < 0 || square[j] <= kFarSquare * median) continue;
      task_of[j] = -1;
      far = true;
    }
    if (!far) break;
  }
  return true;
}

bool Codebook::find_mean(const Kernels* kernels, const int64_t* task_of, int threads,
                         Interruption* interruption) {
  const int64_t tasks = divide_up(count, kTaskCodes);
  Buffer<double> sums;  // [tasks][dim], added in order
  if (!sums.resize(tasks * dim)) return false;
  int64_t taken = 0;
  for (int64_t j = 0; j < count; ++j) taken += task_of[j] >= 0;
  const bool done = parallel_for(threads, tasks, interruption, kTaskCodes * dim, [&](int64_t t) {
    const int64_t first = t * kTaskCodes, n = count - first < kTaskCodes ? count - first : kTaskCodes;
    for (int64_t i = t * dim; i < (t + 1) * dim; ++i) sums[i] = 0.0;
    const RowSpan rows = {const_cast<float*>(codes) + first * dim, dim, VQ_FLOAT32};
    kernels->add_rows(rows, nullptr, task_of + first, int(n), dim, 0, tasks, sums);
  });
  if (!done) return false;
  for (int64_t t = 1; t < tasks; ++t)
    for (int64_t i = 0; i < dim; ++i) sums[i] += sums[t * dim + i];
  double square = 0.0;
  for (int64_t i = 0; i < dim; ++i) {
    centre[i] = taken ? float(sums[i] / double(taken)) : 0.0f;
    square += double(centre[i]) * double(centre[i]);
  }
  centre_norm = sqrt(square);
  return true;
}

// Lengths beyond these are brought to 1 to 2 by a power of two, which rounds nothing: products of smaller ones would
// underflow, and of larger ones overflow.
bool Codebook::choose_centring() {
  constexpr double kShort = 0x1p-24, kLong = 0x1p24;
  centring = {1.0f, centre};
  if (typical_norm >= kShort && typical_norm <= kLong) return true;
  centring.scale = unit_scale(typical_norm);
  if (!scaled_centre_.resize(dim)) return false;
  for (int64_t d = 0; d < dim; ++d) scaled_centre_[d] = centre[d] * centring.scale;
  centring.centre = scaled_centre_;
  return true;
}

bool Codebook::pack(const Kernels* kernels, int threads, Interruption* interruption) {
  const int panel = kernels->panel;
  panel_count = divide_up(count, panel);
  if (!bias.resize(panel_count * panel) || !panels.resize(panel_count * panel * dim))
    return false;
  double norm2 = 0.0;
  const int64_t task_codes = kTaskCodes / panel * panel;
  const int64_t tasks = divide_up(panel_count * panel, task_codes);
  const bool done = parallel_for(threads, tasks, interruption, task_codes * dim, [&](int64_t t) {
    double task_norm2 = 0.0;
    const int64_t last = (t + 1) * task_codes;
    for (int64_t j = t * task_codes; j < last && j < panel_count * panel; ++j) {
      float* out = panels + j / panel * dim * panel + j % panel;
      if (j >= count || !usable[j]) {
        for (int64_t i = 0; i < dim; ++i) out[i * panel] = 0.0f;
        bias[j] = -INFINITY;
        continue;
      }
      const double square = kernels->pack_code(codes + j * dim, centring, dim, out, panel);
      bias[j] = l2 ? float(-0.5 * square) : 0.0f;
      // Overflow makes this infinite, the bound with it, and every row goes to the exact scan.
      if (!(square <= task_norm2)) task_norm2 = square;
    }
#pragma omp critical(vq_codebook_largest)
    if (!(task_norm2 <= norm2)) norm2 = task_norm2;
  });
  largest_norm = sqrt(norm2);
  largest_bias = l2 ? 0.5 * norm2 : 0.0;
  return done;
}

bool Codebook::pack_matrix(const MatrixKernels* matrix, int threads, Interruption* interruption) {
  matrix_steps = divide_up(dim, kMatrixDepth);
  matrix_blocks = divide_up(count, kMatrixCodes);
  const int64_t size = matrix_steps * kMatrixDepth * kMatrixCodes;
  if (!matrix_codes.resize(matrix_blocks * size) || !matrix_bias.resize(matrix_blocks * kMatrixCodes))
    return false;
  constexpr int kTaskBlocks = 4;
  const int64_t tasks = divide_up(matrix_blocks, kTaskBlocks);
  return parallel_for(threads, tasks, interruption, kTaskBlocks * size, [&](int64_t t) {
    float norm2 = 0.0f, error2 = 0.0f, greatest = 0.0f;
    for (int64_t b = t * kTaskBlocks; b < matrix_blocks && b < (t + 1) * kTaskBlocks; ++b) {
      const int64_t first = b * kMatrixCodes;
      const int n = int(count - first < kMatrixCodes ? count - first : int64_t(kMatrixCodes));
      matrix->pack_codes(codes + first * dim, usable + first, centring, n, dim, l2,
                         matrix_codes + b * size, matrix_bias + first, &norm2, &error2, &greatest);
    }
#pragma omp critical(vq_codebook_largest)
    {
      if (!(norm2 <= matrix_norm2)) matrix_norm2 = norm2;
      if (!(error2 <= matrix_error2)) matrix_error2 = error2;
      if (!(greatest <= matrix_largest_bias)) matrix_largest_bias = greatest;
    }
  });
}

bool Codebook::ensure_panels(const Kernels* kernels) {
  bool ok = true;
#pragma omp critical(vq_codebook_panels)
  ok = panels.get() != nullptr || pack(kernels, 1, nullptr);
  return ok;
}

bool Codebook::ensure_lengths(const Kernels* kernels) {
  bool ok = true;
#pragma omp critical(vq_codebook_lengths)
  if (!has_lengths_) {
    ok = has_lengths_ = half_squares.resize(count) && lengths.resize(count);
    if (ok) kernels->square_distances(codes, count, dim, nullptr, half_squares);
    for (int64_t j = 0; ok && j < count; ++j) {
      lengths[j] = sqrt(half_squares[j]);
      half_squares[j] *= 0.5;
    }
  }
  return ok;
}

bool Codebook::ensure_scaled() {
  bool ok = true;
#pragma omp critical(vq_codebook_scaled)
  if (!scaled && centring.scale == 1.0f) {
    scaled = codes;
  } else if (!scaled) {
    ok = scaled_codes_.resize(count * dim);
    for (int64_t i = 0; ok && i < count * dim; ++i) scaled_codes_[i] = codes[i] * centring.scale;
    if (ok) scaled = scaled_codes_;
  }
  return ok;
}

bool Codebook::ensure_flat() {
  bool ok = true;
#pragma omp critical(vq_codebook_flat)
  if (!flat.get()) {
    ok = has_flat = flat.resize(count * kFlatParts);
    for (int64_t j = 0; ok && j < count; ++j) {
      double sum = 0.0;
      for (int64_t d = 0; usable[j] && d < dim; ++d) sum += double(codes[j * dim + d]);
      has_flat &= fabs(sum) < double(FLT_MAX);
      for (int part = 0; part < kFlatParts; ++part) {
        const float rounded = has_flat ? float(sum) : 0.0f;
        flat[j * kFlatParts + part] = rounded;
        sum -= double(rounded);
      }
    }
  }
  return ok;
}

bool Codebook::ensure_squares() {
  bool ok = true;
#pragma omp critical(vq_codebook_squares)
  if (!has_squares_) {
    ok = has_squares_ = !l2 || (squares_high.resize(count) && squares_low.resize(count));
    for (int64_t j = 0; ok && l2 && j < count; ++j) {
      const ExactSum sum = half_square(codes + j * dim, dim);
      squares_high[j] = sum.high;
      squares_low[j] = sum.low;
    }
  }
  return ok;
}

}  // namespace vq_cpu
