// What a row gives once its code is known: the quantized row, its squared error and its share of the
// statistics; and the loss, which the last block of a grid writes in an order that does not depend on it.
#pragma once

#include "search.cuh"

namespace vq_cuda {

// Squared errors of rows that were listed, in whatever order they come: integers by exponent, eight exponents to a
// sum, so that 2^31 floats fit; and how many were infinite, or NaN.
constexpr int kSquareExponents = 8, kInfiniteSquares = 32, kNanSquares = 33;
static_assert(kSquareSums == kNanSquares + 1, "a sum for every group of exponents, infinity and NaN");

__device__ inline void add_square(unsigned long long* sums, float square) {
  const unsigned bits = __float_as_uint(square);
  if (bits >= 0x7f800000u) {
    atomicAdd(sums + (bits == 0x7f800000u ? kInfiniteSquares : kNanSquares), 1ull);
    return;
  }
  const unsigned exponent = max(bits >> 23, 1u);
  const unsigned long long mantissa = (bits & 0x7fffffu) | (bits >> 23 != 0 ? 0x800000u : 0u);
  atomicAdd(sums + exponent / kSquareExponents, mantissa << exponent % kSquareExponents);
}

// What one of the sums stands for.
__device__ inline double square_sum(const unsigned long long* sums, int i) {
  const unsigned long long sum = __ldcg(sums + i);
  if (i < kInfiniteSquares) return ldexp(static_cast<double>(sum), kSquareExponents * i - 150);
  const double infinity = static_cast<double>(kInfinity);
  return sum == 0 ? 0.0 : i == kInfiniteSquares ? infinity : infinity - infinity;
}

// Rows at once of a thread, whose loads are under way together.
constexpr int kEmitRows = 4;

// Writes elements first, first + step, ... of up to kEmitRows quantized rows: row i is row numbers[i] of
// the batch, and is left alone if flags[i] has kOutside. Gives the rows' squared errors and largest
// magnitudes over those elements.
template <typename X, typename E>
__device__ void emit_elements(const SearchArgs& a, const int64_t (&numbers)[kEmitRows],
                              const int (&codes)[kEmitRows], const int (&flags)[kEmitRows], int first,
                              int step, float (&squares)[kEmitRows], float (&largest)[kEmitRows]) {
  const int dim = a.dim;
  const bool differences = a.statistics.codes != nullptr;
  const int64_t x_step = a.x.map.strides.dim, out_step = a.quantized_map.strides.dim;
  const X* x[kEmitRows];
  const E* code[kEmitRows];
  X* out[kEmitRows];
#pragma unroll
  for (int i = 0; i < kEmitRows; ++i) {
    const int64_t n = flags[i] & kOutside ? 0 : numbers[i];
    x[i] = static_cast<const X*>(a.x.data) + a.x.map.offset(n);
    out[i] = static_cast<X*>(a.quantized) + a.quantized_map.offset(n);
    code[i] = static_cast<const E*>(a.codebook) + static_cast<int64_t>(codes[i]) * dim;
  }
  for (int d = first; d < dim; d += step) {
    float value[kEmitRows], e[kEmitRows];
#pragma unroll
    for (int i = 0; i < kEmitRows; ++i) {
      const bool inside = (flags[i] & kOutside) == 0;
      value[i] = inside ? to_float(x[i][d * x_step]) : 0.0f;
      e[i] = inside ? to_float(code[i][d]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kEmitRows; ++i) {
      if (flags[i] & kOutside) continue;
      if (flags[i] & kNonfinite) e[i] = __uint_as_float(0x7fc00000u);
      const float difference = e[i] - value[i];
      squares[i] = fmaf(difference, difference, squares[i]);
      largest[i] = fmaxf(largest[i], fabsf(differences ? summed_difference(value[i], e[i]) : value[i]));
      out[i][d * out_step] = from_float<X>(flags[i] & kMasked ? 0.0f : e[i]);
    }
  }
}

__device__ inline void count_row(const SearchArgs& a, int64_t n, int j, int flag, float largest) {
  a.indices[n] = flag & kMasked ? -1 : j;
  if (a.statistics.counts == nullptr) return;
  const bool counts = (flag & (kMasked | kNonfinite)) == 0;
  a.statistics.slots[n] = counts ? j : -1;
  if (!counts) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(a.statistics.counts + j), 1ull);
  atomicMax(a.statistics.largest + j, __float_as_uint(largest));
}

// Emits rows r = 0 .. ROWS - 1 of the block, number(r) of the batch, with index[r] and flag[r]. Adds what the
// thread takes of their squared errors and of the rows that count; with open_squares adds whole rows' errors there.
template <typename X, int ROWS, typename Number>
__device__ inline void emit_rows(const SearchArgs& a, const int* index, const int* flag, Number number,
                                 double* squares, int64_t* rows, unsigned long long* open_squares) {
  // Channel-first: neighbouring threads take neighbouring rows. Else a warp takes a row's elements.
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp;
  const bool by_row = a.lanes_over_rows;
  const int stride = by_row ? kThreads : kWarps;  // from one of a thread's rows to the next
  for (int first = by_row ? tid : tid / kWarp; first < ROWS; first += kEmitRows * stride) {
    int64_t numbers[kEmitRows];
    int codes[kEmitRows], flags[kEmitRows];
    float row_squares[kEmitRows] = {}, largest[kEmitRows] = {};
#pragma unroll
    for (int i = 0; i < kEmitRows; ++i) {
      const int r = first + i * stride;
      numbers[i] = r < ROWS ? number(r) : 0;
      codes[i] = r < ROWS ? index[r] : 0;
      flags[i] = r < ROWS ? flag[r] : kOutside;
    }
    const int start = by_row ? 0 : lane, step = by_row ? 1 : kWarp;
    if (a.codebook_is_float) {
      emit_elements<X, float>(a, numbers, codes, flags, start, step, row_squares, largest);
    } else {
      emit_elements<X, X>(a, numbers, codes, flags, start, step, row_squares, largest);
    }
#pragma unroll
    for (int i = 0; i < kEmitRows; ++i) {
      if (flags[i] & kOutside) continue;
      if (open_squares != nullptr) {
        if (!by_row) row_squares[i] = warp_sum(row_squares[i]);
        if (by_row || lane == 0) add_square(open_squares, row_squares[i]);
      } else if (!(flags[i] & kMasked)) {
        *squares += row_squares[i];
      }
      if (!by_row && a.statistics.counts != nullptr) largest[i] = warp_max(largest[i]);
      if (!by_row && lane != 0) continue;
      if (!(flags[i] & kMasked)) *rows += 1;
      count_row(a, numbers[i], codes[i], flags[i], largest[i]);
    }
  }
}

struct LossScratch {
  double squares[kWarps];
  int64_t rows[kWarps];
  int last;
};

// The loss and the number of valid rows from what each block of rows and the rows that were listed have left.
__device__ inline void write_loss(const SearchArgs& a, LossScratch* scratch) {
  const int tid = static_cast<int>(threadIdx.x);
  double total = a.certify && tid < kSquareSums ? square_sum(a.open_squares, tid) : 0.0;
  int64_t valid = 0;
  for (int b = tid; b < a.row_blocks; b += kThreads) {
    total += __ldcg(a.block_squares + b);
    valid += __ldcg(reinterpret_cast<const long long*>(a.block_rows) + b);
  }
  total = block_sum<kThreads>(total, scratch->squares);
  valid = block_sum<kThreads>(valid, scratch->rows);
  if (tid == 0) {
    const double elements = static_cast<double>(valid > 0 ? valid : 1) * a.dim;
    // Rounded before it is weighted: the mean's bits do not depend on the weight.
    *a.loss = a.options.loss_weight * static_cast<float>(total / elements);
    *a.valid_rows = valid;
  }
}

}  // namespace vq_cuda
