// The inner loops, one table for each instruction set. The drivers (sweep_search.cpp, gather.cpp, ...) are
// compiled for any CPU and call through the table of the instruction set in use.
#pragma once

#include <stdint.h>

#include "cpu/best_two.h"
#include "cpu/vq_cpu.h"

namespace vq_cpu {

// A tile of rows against consecutive panels of codes: score = x.e + bias, the largest wins. Lanes are
// rows: x is [dim][tile], so that the argmin needs no exchange between lanes; panels are
// [panels][dim][panel].
struct SweepInput {
  const float* x;
  const float* panels;
  const float* bias;  // [panels * panel]: -|e|^2/2, or -inf for a code that cannot be chosen
  int64_t dim, panel_count;
  int32_t first_code;
  int vectors;  // of the tile, in use
};

// The best code of each row so far, raised by what the sweep meets.
struct BestSweep : SweepInput {
  float* best;     // [tile]
  float* second;   // [tile]
  int32_t* index;  // [tile]
};

// The codes with a score of at least threshold, at most `capacity` a row. A count above the capacity
// says that the list is incomplete.
struct CandidateSweep : SweepInput {
  const float* threshold;  // [tile]
  int32_t* candidates;     // [tile][capacity]
  int32_t* counts;         // [tile]
  int32_t capacity;
};

// A tile of rows against codes [count][dim] as they are given, by |x - e|^2. Codes whose square is within the row's
// limit are listed, at most `capacity` a row; a count above it says that more are near.
struct DifferenceSweep {
  const float* x;  // [dim][tile], not centred
  const float* codes;
  const uint8_t* usable;  // [count]
  const float* stand_in;  // [dim]: finite values, for codes that are not usable
  int64_t dim, count;
  int32_t first_code;
  int vectors;         // of the tile, in use
  float factor;        // how much larger than the least square another may be whose code could be as near
  const float* slack;  // [tile], and by how much more
  float* limit;        // [tile], lowered to factor * least + slack
  int32_t* candidates;  // [tile][capacity]
  float* squares;       // [tile][capacity]
  int32_t* counts;      // [tile]
  int32_t capacity;
};

// A few rows against codes [count][dim] as they are given, count <= kDirectCodes.
constexpr int kDirectCodes = 256, kMostDotRows = 8;

struct DirectSweep {
  const float* codes;
  const float* bias;  // [kDirectCodes], as half_norms leaves it
  int64_t dim;
  int count, rows;
  int32_t first_code;
  const float* x;           // sweep_dots: [rows][pitch], zeros beyond dim; sweep_rows: [dim][tile]
  int64_t pitch;            // a multiple of lanes
  BestTwo<float>* found;    // [rows], written; the index counts from first_code
};

// Rows and codes as the passes take them: scale * value - centre, in one rounding. `centre` [dim] is scaled
// already; null: 0.
struct Centring {
  float scale;
  const float* centre;
};

// Rows whose values lie side by side, `pitch` of them apart.
struct RowSpan {
  void* data;
  int64_t pitch;
  int dtype;
};

constexpr int kExactLanes = 16;   // rows at once of the scans below, of which the first `lanes` are in use

// Such rows with codes in float64, in any order of summation: the codes that may be the nearest.
struct WideScan {
  const double* x;  // [dim][kExactLanes]
  const float* codes;
  const uint8_t* usable;
  const double *half_squares, *lengths;  // of the codes: |e|^2 / 2, |e|
  const int64_t* spans;                  // [span_count][2]: the first of some codes, and the one behind them
  int span_count;
  const int32_t* index;                  // which of `count` codes each is; null: in order
  const double* norms;                   // [kExactLanes]: |x|
  double error;                          // of |e|^2 / 2 + |x||e|: how far a score may be off
  int64_t count, dim;
  int l2, lanes;
  // Scratch: [count + kExactLanes a span][kExactLanes], and two numbers for as many codes.
  double* scores;
  int32_t* groups;
  double* limit;   // [kExactLanes], written: no score of the nearest code is above; infinite without a code to choose
  uint16_t* near;  // [count], written: the lanes in which a score may be as low, as bits
  int32_t* open;   // [count + 1], written: the codes that are near in any lane, in ascending order
};

// Such rows and codes in whole numbers modulo 2^64 (fixed_point.h): of the codes that are near, the one of the least
// score, which is within 2^63 of the others'; within 2^31 if the rows are given modulo 2^32.
struct FixedScan {
  const uint64_t* x;      // [dim][kExactLanes]
  const uint32_t* x32;    // the same modulo 2^32, or null
  const int64_t* codes;   // [count][dim]
  const int64_t* halves;  // [count], null for 0, and what they are multiplied with [kExactLanes]
  const int64_t* factor;
  const uint16_t* near;  // [codes]: the lanes in which each is near, as bits
  const int32_t* open;   // [open_count]: the codes that are near in any lane, in ascending order
  int64_t open_count, dim;
  int lanes;
  int64_t* index;  // [kExactLanes], written
};

// kernel_table.h fills it by name.
struct Kernels {
  int lanes, vectors, panel;  // rows of a vector, vectors of a tile, codes of a panel

  // Rows first .. first + n - 1 as float32 [n][dim], and back.
  void (*load_rows)(const VqRows* x, int64_t first, int n, float* out);
  void (*store_rows)(const VqRows* out, int64_t first, int n, const float* rows);
  // packed [dim][tile] = the rows centred, beyond n whatever; norm2 [tile] = sum of squares.
  void (*pack_tile)(const VqRows* x, int64_t first, int n, Centring centring, float* packed, float* norm2);

  void (*sweep)(const BestSweep*);
  void (*collect)(const CandidateSweep*);
  void (*sweep_differences)(const DifferenceSweep*);

  // bias = -|e|^2/2 (cosine: 0), beyond count -inf; returns the largest |e|^2, infinite if a code
  // is not finite.
  float (*half_norms)(const float* codes, int count, int64_t dim, int l2, float* bias);
  int dot_rows;
  void (*sweep_dots)(const DirectSweep*);  // up to dot_rows rows, lanes are dimensions
  void (*sweep_rows)(const DirectSweep*);  // up to a tile of rows, lanes are rows

  // The exact scores (exact_body.h) of `kExactLanes` rows x [dim][lanes] with the codes open [count], which come in
  // ascending order, and the index of the smallest. squares_high and _low [codes]: the sum over e^2/2, null for 0.
  void (*exact_scan)(const double* x, const float* codes, const int32_t* open, const double* squares_high,
                     const double* squares_low, int64_t count, int64_t dim, int lanes, int64_t* index);

  // The same rows in float64 first, and what that leaves open in whole numbers.
  int64_t (*wide_scan)(const WideScan*);  // returns how many codes are open
  void (*fixed_scan)(const FixedScan*);

  // Of each code: whether it is finite, and a hash that equal codes share.
  void (*inspect_codes)(const float* codes, int64_t count, int64_t dim, uint8_t* finite, uint64_t* hashes);
  // square [count] = |code - centre|^2 (null: 0).
  void (*square_distances)(const float* codes, int64_t count, int64_t dim, const float* centre, double* square);
  // out, `pitch` floats apart = the code centred; returns its square norm.
  double (*pack_code)(const float* code, Centring centring, int64_t dim, float* out, int64_t pitch);
  // The scores e.e/2 - x.e (or -x.e) of one code with n rows, in float64 in any order; returns e.e. Rows
  // are `pitch` doubles apart, with zeros up to a multiple of kExactLanes.
  double (*score_rows)(const double* rows, int n, int64_t pitch, const float* code, int64_t dim, int l2,
                       double* scores);

  // The scores |e|^2/2 - x.e of one row with the codes [n] of a list, in float64 in any order; half_squares [codes],
  // null for 0. Returns the smallest.
  double (*score_listed)(const float* row, const float* codes, const double* half_squares, const int32_t* list, int n,
                         int64_t dim, double* scores);

  // out rows = codes[index], in x's dtype; returns the sum of (code - x)^2. `rounded`: the codes in that dtype, or
  // null.
  double (*quantize_rows)(RowSpan x, const float* codes, const void* rounded, const int64_t* index, int n, int64_t dim,
                          RowSpan out);
  // sums [codes][dim] += rows, in order, for rows with low <= index < high; codes [codes][dim] not null:
  // += row - code.
  void (*add_rows)(RowSpan x, const float* codes, const int64_t* index, int n, int64_t dim, int64_t low,
                   int64_t high, double* sums);
  // grad.data null: zero; loss_grad null: none. Rows with index -1 are 0, and those of another that names none of
  // the codes [count] NaN. All in x's dtype.
  void (*backward_rows)(RowSpan grad, const float* loss_grad, RowSpan x, const float* codes, int64_t count,
                        const int64_t* index, int n, int64_t dim, int gradient, RowSpan out);
  // Runs so many rounds of multiply-adds in registers, for the machine's roof; returns how many operations.
  int64_t (*peak)(int64_t rounds);
  // Whether the code took part: 0 if float32 cannot hold its average, and nothing was written.
  int (*ema_row)(float* code, float* average, const float* sum, int64_t dim, float one_minus_decay,
                 float size, int normalize);
};

// The first pass in a matrix unit: products of bfloat16 in float32, for 16 codes by 16 rows at a time.
// Rows come in groups of kMatrixRows, codes in blocks of kMatrixCodes, dimensions in steps of
// kMatrixDepth, all padded with zeros.
constexpr int kMatrixRows = 32, kMatrixCodes = 32, kMatrixDepth = 32;
constexpr int kMatrixChunk = 128;  // codes between two searches for candidates
constexpr int kMatrixScratch = (kMatrixChunk + kMatrixCodes + kMatrixChunk / 8) * kMatrixRows;

struct MatrixSweep {
  const uint16_t* x;      // one group, as pack_rows leaves it
  const uint16_t* codes;  // blocks, as pack_codes leaves them
  const float* bias;      // [blocks * kMatrixCodes]: -|e|^2/2, or -inf for a code that cannot be chosen
  int64_t steps, blocks;
  int32_t first_code;
  const float* margin;  // [rows]: codes that score less than the best by more than this are out
  float* best;          // [rows]
  // The codes within the margin of the best so far, in ascending order. A row with more than the
  // capacity is given up: its count stays above the capacity.
  int32_t* candidates;  // [rows][capacity]
  float* scores;        // [rows][capacity]
  int32_t* counts;      // [rows]
  int32_t capacity;
  float* scratch;  // kMatrixScratch floats
};

struct MatrixKernels {
  // Centres kMatrixCodes codes (n of them there), rounds them to bfloat16 and gives their biases. Raises norm2, error2
  // and greatest to the largest square norm, square norm of the rounding error, and |bias| among them.
  void (*pack_codes)(const float* codes, const uint8_t* usable, Centring centring, int n, int64_t dim,
                     int l2, uint16_t* out, float* bias, float* norm2, float* error2, float* greatest);
  // Rounds 16 packed rows [dim][pitch] into half `half` of a group; error2 [16].
  void (*pack_rows)(const float* packed, int64_t pitch, int64_t dim, int half, uint16_t* out, float* error2);
  void (*configure_tiles)();  // before and after sweeps, on the same thread
  void (*release_tiles)();
  void (*sweep)(const MatrixSweep*);
  // The score e.e/2 - x.e (or -x.e) of values as they are given in float64, in any order.
  double (*score)(const float* x, const float* e, int64_t dim, int l2);
  // As Kernels::peak, of the tile unit's bfloat16 products.
  int64_t (*peak)(int64_t rounds);
};

const Kernels* kernels_in_use();
// Null without a matrix unit.
const MatrixKernels* matrix_kernels_in_use();

extern const Kernels kernels_portable;
#ifdef VQ_HAVE_NEON
extern const Kernels kernels_neon;
#endif
#ifdef VQ_HAVE_AVX2
extern const Kernels kernels_avx2;
#endif
#ifdef VQ_HAVE_AVX512
extern const Kernels kernels_avx512;
#endif
#ifdef VQ_HAVE_AMX
extern const MatrixKernels kernels_amx;
#endif

}  // namespace vq_cpu
