// The first pass in int8 or bfloat16 on vector units: an upper bound of every score, of each row and code.
//
// Rows and codes are centred and scaled by one power of two; then x' = s q + r and e' = t p + g, with integers
// q and p of -127..127 (int8) or rounded values and s = t = 1 (bfloat16). Scores are maximised:
//
//   v = x'.e' - |e'|^2 / 2 <= s t (q.p) - |e'|^2 / 2 + |x'| (|g| + rho |t p|) = u,   rho >= |r| / |x'|.
//
// certificate.cpp derives it. What a row leaves open are the codes whose u reaches the lower bound of the best.
#pragma once

#include <stdint.h>

#include "cpu/kernels.h"

namespace vq_cpu {

constexpr int kNarrowChunk = 512;      // codes between two searches for candidates
constexpr int kNarrowCandidates = 64;  // groups, and then codes, of a row before it is given up
constexpr int kNarrowRuns = 8;         // of groups in a chunk
constexpr int kNarrowPitch = kNarrowCandidates + 8;  // of lists of codes, which are written a group at a time
// Below the upper bound of any code, of any row that has a bound.
constexpr float kNarrowLeast = -0x1p120f;
// Rows that have a bound are shorter than this, so that no term overflows; beside codes that are left out for their
// size shorter than the second, as those cannot be near then (docs/certificate.md).
constexpr float kNarrowReach = 0x1.4p63f, kNarrowReachBesideFar = 0x1p48f;
// Square of the norm of a packed code beyond which it cannot be the nearest of a row that has a bound
// (docs/certificate.md).
constexpr float kNarrowMostSquare = 0x1p100f;

// All codes, [groups * group] unless said otherwise; those that cannot be chosen have minus_half = -inf.
struct NarrowCodes {
  int64_t dim, steps, groups;
  const int32_t* codes;      // [groups][steps][group], 32 bits: four int8 or two bfloat16 dimensions
  const int32_t* start;      // int8: -128 sum(p) where rows are stored as q + 128, else 0
  const float* scale;        // t
  const float* lost;         // |g|
  const float* kept;         // |t p|
  const float* minus_half;   // -|e'|^2 / 2, as much larger as its rounding may be
  // [groups]: the largest of a group's lost, kept and |e'|^2 / 2; infinite where its codes differ in size.
  const float *most_lost, *most_kept, *most_half;
  const float *least_lost, *least_kept;  // [groups]: the least of a group's lost and kept,
  const float *more_lost, *more_kept;    // and how much more a code's are
};

// What pack_codes writes of a group of codes.
struct NarrowGroup {
  int32_t *codes, *start;
  float *scale, *lost, *kept, *square;  // square: |e'|^2
};

// Rows that will be packed next, `pitch` bytes apart, asked for while a tile is swept: the pattern of packing hides
// them from the processor.
struct NextRows {
  const char* data;
  int64_t pitch, bytes;
  int count;
};

// A tile of rows and what it finds; arrays of one value a row are [tile].
struct NarrowTile {
  int n;          // rows in use
  float reach;    // a row as long as this or longer has no bound
  int32_t* rows;  // [steps][tile]
  float* scale;   // s
  float* norm;    // |x'|; infinite where the row has no bound, which finds nothing
  float* lost;    // |r|
  float* bound;   // of each code for this tile
  // Whether the rows are alike in length. Then the largest of |x'| (bound - common), with its group's common bound, is
  // part of a code's bias: |x'| bound <= |x'| common + longest (bound - common).
  bool alike;
  float longest;
  float *bias, *common;  // [groups * group], [groups]
  float* group_bound;  // the largest of each group, infinite where its codes differ in size
  // Scratch: the largest upper bound of each group of a chunk, its last bits the number of the group; and of each run
  // of groups the largest of these and the next one.
  float* most;  // [kNarrowChunk / group][tile]
  float *run_best, *run_rest;  // [kNarrowRuns][tile]
  float* slack;   // taken off the lower bound of a row's best score
  float* least;   // the lower bound of the best score so far
  // The groups whose largest upper bound reached it when they were met, and this bound, in any order. A row of more
  // than kNarrowCandidates is given up: its count stays above.
  int32_t* groups;  // [tile][kNarrowCandidates]
  float* upper;     // [tile][kNarrowCandidates]
  int32_t* counts;
  // Where there are such groups, the one of the largest, this bound and the next largest of the other groups,
  float *best, *second;
  int32_t* lead;
  // the upper bounds of its codes, the largest of which is that of the likely best one, what any other code can reach
  // at most, and whether one can be as near (1 or 0).
  float* leading;  // [tile][group], and as many as a vector has
  int32_t* code;
  float* others;
  int32_t* doubtful;
  NextRows next;
};

// The factors of all bounds, see Certificate::narrow.
struct NarrowFactors {
  float lost, kept;  // of |g| and |t p| in the bound of a code for a tile
  float half;        // of |e'|^2 / 2: what is left of rounding in minus_half, once more for a lower bound
  float offset;      // and underflow
  // Of |x'|^2 + 4 |c|^2 in the slack of a row: the contract's own score, on values that were not centred.
  double slack;
  // Of NarrowKernels::quick_score and score: times |x'||e'| + |e'|^2 / 2, and of |e'|^2.
  double quick_score, score, contract;
};

// How far the bounds reach on both sides of a score: the upper one less this is a lower one.
inline float twice_bound(const NarrowFactors& factors, float norm, float bound, float half) {
  return 2.001f * (norm * bound + (factors.half * half + factors.offset));
}

struct NarrowKernels {
  int lanes, vectors, group;  // rows of a vector, vectors of a tile, codes of a group

  // 32-bit words of a packed row or code of so many dimensions.
  int64_t (*steps)(int64_t dim);
  // n <= group codes, of which unusable ones become zeros.
  void (*pack_codes)(const float* codes, const uint8_t* usable, Centring centring, int n, int64_t dim,
                     const NarrowGroup* out);
  // tile->rows, scale, norm and lost of rows first .. first + tile->n - 1; scratch [dim][lanes].
  void (*pack_rows)(const VqRows* x, int64_t first, Centring centring, float* scratch, NarrowTile* tile);
  // tile->bound.
  void (*set_bounds)(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* tile);
  // All codes. What is left of it are tile->code and what open_codes reads.
  void (*search)(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* tile);
  // The codes of a row but tile->code whose upper bound reaches `limit`, in any order, and their upper bounds; returns
  // how many they are, more than kNarrowCandidates if it left some out. Both are [kNarrowPitch].
  int (*open_codes)(const NarrowCodes* codes, const NarrowTile* tile, int row, float limit, int32_t* open,
                    float* upper);
  // As Kernels::peak, of the narrow products.
  int64_t (*peak)(int64_t rounds);
  // x'.e' - |e'|^2 / 2 in float32 and in float64, in any order; cosine: x.e', the row scaled alone.
  float (*quick_score)(const float* x, const float* code, Centring centring, int64_t dim, int l2);
  double (*score)(const float* x, const float* code, Centring centring, int64_t dim, int l2);
};

// Null where the instruction set in use has no such pass.
const NarrowKernels* int8_kernels_in_use();
const NarrowKernels* bfloat16_kernels_in_use();

#ifdef VQ_HAVE_DOTPROD
extern const NarrowKernels kernels_int8_dotprod;
#endif
#ifdef VQ_HAVE_I8MM
extern const NarrowKernels kernels_int8_i8mm;
#endif
#ifdef VQ_HAVE_AVXVNNI
extern const NarrowKernels kernels_int8_avxvnni;
#endif
#ifdef VQ_HAVE_AVX512VNNI
extern const NarrowKernels kernels_int8_avx512vnni;
#endif
#ifdef VQ_HAVE_AMXINT8
extern const NarrowKernels kernels_int8_amxint8;
#endif
#ifdef VQ_HAVE_AVX512BF16
extern const NarrowKernels kernels_bfloat16_avx512bf16;
#endif

}  // namespace vq_cpu
