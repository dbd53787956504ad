// The first pass in int8 or bfloat16 on vector units: an upper bound of every score, of each row and code.
//
// Rows and codes are centred and scaled by one power of two; then x' = s q + r and e' = t p + g, with integers
// q and p of -127..127 (int8) or rounded values and s = t = 1 (bfloat16). Scores are maximised:
//
//   v = x'.e' - |e'|^2 / 2 <= s t (q.p) - |e'|^2 / 2 + |x'| |g| + |r| |t p| = u.
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

// The codes that can be chosen, in an order in which those of a group are alike in scale, [groups * group] unless said
// otherwise; at the end of a group may be places without a code, which have minus_half = -inf.
struct NarrowCodes {
  int64_t dim, steps, groups;
  const int32_t* codes;      // [groups][steps][group], 32 bits: four int8 or two bfloat16 dimensions
  const int32_t* start;      // int8: -128 sum(p) where rows are stored as q + 128, else 0
  const int32_t* order;      // the number of the code in each place, 0 where there is none
  const float* scale;        // [groups]: t
  const float* of_norm;      // the bound of a row and a code is of_norm |x'| + of_lost |r|: |g| and
  const float* of_lost;      // |t p|, with room for rounding
  const float* length;       // |e'| at most
  const float* minus_half;   // -|e'|^2 / 2, as much larger as its rounding may be
  // [groups]: the largest of a group's of_norm, of_lost and |e'|^2 / 2.
  const float *most_of_norm, *most_of_lost, *most_half;
  const uint8_t* uneven;  // [groups]: whether a group's codes differ in of_norm or of_lost
};

// A group for pack_codes: n codes by their numbers, their common scale, and what is written of them.
struct NarrowGroup {
  const int32_t* order;
  int n;
  float scale;
  int32_t *codes, *start;
  float *lost, *kept;  // |g| and |t p|
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
  int32_t* code;  // its place
  float* others;
  int32_t* doubtful;
  NextRows next;
};

// The factors of all bounds, see Certificate::narrow.
struct NarrowFactors {
  float lost, kept;  // of |x'||g| and |r||t p|; of |x'||t p|
  float half;        // of |e'|^2 / 2: what is left of rounding in minus_half, once more for a lower bound
  float offset;      // and underflow
  // Of |x'|^2 + 4 |c|^2 in the slack of a row: the contract's own score, on values that were not centred.
  double slack;
  // Of NarrowKernels::quick_score and score: times |x'||e'| + |e'|^2 / 2, and of |e'|^2.
  double quick_score, score, contract;
};

// How far the bounds reach on both sides of a score: the upper one less this is a lower one.
inline float twice_bound(const NarrowFactors& factors, float bound, float half) {
  return 2.001f * (bound + (factors.half * half + factors.offset));
}

struct NarrowKernels {
  int lanes, vectors, group;  // rows of a vector, vectors of a tile, codes of a group
  bool rounds;                // whether sums of products are rounded
  bool seven_bits;            // of int8 values: twice the residuals of eight

  // 32-bit words of a packed row or code of so many dimensions.
  int64_t (*steps)(int64_t dim);
  // The scale that each of n codes would have by itself, and |e'|^2. Of unusable codes 0 and -1.
  void (*measure_codes)(const float* codes, const uint8_t* usable, Centring centring, int64_t n, int64_t dim,
                        float* scale, float* square);
  // One group of the codes; square: of all of them.
  void (*pack_codes)(const float* codes, const float* square, Centring centring, int64_t dim,
                     const NarrowGroup* group);
  // tile->rows, scale, norm and lost of rows first .. first + tile->n - 1; scratch [dim][lanes].
  void (*pack_rows)(const VqRows* x, int64_t first, Centring centring, float* scratch, NarrowTile* tile);
  // All codes. What is left of it are tile->code and what open_codes reads.
  void (*search)(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* tile);
  // The places of a row's codes but tile->code whose upper bound reaches `limit`, in any order, and their upper bounds;
  // returns how many they are, more than kNarrowCandidates if it left some out. Both are [kNarrowPitch].
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
const NarrowKernels* int16_kernels_in_use();
const NarrowKernels* bfloat16_kernels_in_use();

#ifdef VQ_HAVE_DOTPROD
extern const NarrowKernels kernels_int8_dotprod;
#endif
#ifdef VQ_HAVE_I8MM
extern const NarrowKernels kernels_int8_i8mm;
#endif
#ifdef VQ_HAVE_AVX2
extern const NarrowKernels kernels_int8_avx2, kernels_int16_avx2;
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
