// The first pass in the AMX tile unit.
//
// A tile of 16 codes by 16 rows comes out with rows along the lanes. Each chunk of codes is read
// twice: while its products are made only the best of each group of eight codes is kept, then the
// groups that reach the row's threshold are searched for candidates. Products and the reduction of
// the previous ones alternate, so that both units stay busy.
#include <float.h>
#include <string.h>

#include "cpu/simd_avx512.h"

#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

constexpr int kRows = kMatrixRows, kCodes = kMatrixCodes, kDepth = kMatrixDepth, kChunk = kMatrixChunk;
constexpr int kRegister = 512;  // bfloat16 values of a tile register
constexpr int kGroup = 8;       // codes of which only the best is kept at first

// Rounded to bfloat16, as float32; what the tile unit would flush to zero is zero already.
inline __m512 rounded(__m512 v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512 r = _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(int(0xffff0000u))));
  const __mmask16 normal = _mm512_cmp_ps_mask(_mm512_abs_ps(r), _mm512_set1_ps(FLT_MIN), _CMP_GE_OQ);
  return _mm512_maskz_mov_ps(normal, r);
}

inline __m256i upper_halves(__m512 v) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16));
}

inline void raise(float* most, float v) {
  if (!(v <= *most)) *most = v;  // also to NaN, which leaves nothing certain
}

void pack_code_bfloat16(const float* e, Centring centring, int64_t dim, uint16_t* out, int64_t steps,
                        __m512* norm2, __m512* error2) {
  __m512 square = _mm512_setzero_ps(), error = _mm512_setzero_ps();
  for (int64_t step = 0; step < steps; ++step) {
    for (int half = 0; half < 2; ++half) {
      const int64_t d = step * kDepth + half * V::W;
      const int n = int(dim - d >= V::W ? V::W : dim - d > 0 ? dim - d : 0);
      // A power of two rounds nothing (of subnormals what the bound allows for), so that one rounding is left.
      __m512 v = _mm512_mul_ps(V::load_n(e + (n ? d : 0), n), V::set(centring.scale));
      if (centring.centre) v = _mm512_sub_ps(v, V::load_n(centring.centre + (n ? d : 0), n));
      const __m512 r = rounded(v), lost = _mm512_sub_ps(v, r);
      square = _mm512_fmadd_ps(v, v, square);
      error = _mm512_fmadd_ps(lost, lost, error);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + step * kRegister + half * V::W), upper_halves(r));
    }
  }
  *norm2 = square;
  *error2 = error;
}

// [kCodes / 16][steps][16 codes][kDepth]
void pack_codes(const float* codes, const uint8_t* usable, Centring centring, int n, int64_t dim, int l2,
                uint16_t* out, float* bias, float* norm2, float* error2, float* greatest) {
  const int64_t steps = (dim + kDepth - 1) / kDepth;
  for (int c = 0; c < kCodes; ++c) {
    uint16_t* to = out + (c / 16) * steps * kRegister + (c % 16) * kDepth;
    if (c >= n || !usable[c]) {
      for (int64_t step = 0; step < steps; ++step) memset(to + step * kRegister, 0, kDepth * sizeof *to);
      bias[c] = -__builtin_inff();
      continue;
    }
    __m512 square, error;
    pack_code_bfloat16(codes + c * dim, centring, dim, to, steps, &square, &error);
    const float code_norm2 = V::sum(square);
    bias[c] = l2 ? -0.5f * code_norm2 : 0.0f;
    raise(norm2, code_norm2);
    raise(error2, V::sum(error));
    raise(greatest, l2 ? 0.5f * code_norm2 : 0.0f);
  }
}

// [steps][2][kDepth / 2 pairs][16 rows][2]
void pack_rows(const float* packed, int64_t pitch, int64_t dim, int half, uint16_t* out, float* error2) {
  const int64_t steps = (dim + kDepth - 1) / kDepth;
  __m512 error = _mm512_setzero_ps();
  for (int64_t d = 0; d < steps * kDepth; d += 2) {
    const __m512 a = d < dim ? V::load(packed + d * pitch) : _mm512_setzero_ps();
    const __m512 b = d + 1 < dim ? V::load(packed + (d + 1) * pitch) : _mm512_setzero_ps();
    const __m512 ra = rounded(a), rb = rounded(b), la = _mm512_sub_ps(a, ra), lb = _mm512_sub_ps(b, rb);
    error = _mm512_fmadd_ps(la, la, error);
    error = _mm512_fmadd_ps(lb, lb, error);
    const __m512i pair = _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(ra), 16), _mm512_castps_si512(rb));
    _mm512_storeu_si512(out + (d / kDepth * 2 + half) * kRegister + d % kDepth * 16, pair);
  }
  V::store(error2, error);
}

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Not on the stack: GCC does not see that the instruction reads all of it.
const TileConfig kTileConfig;

void configure_tiles() { _tile_loadconfig(&kTileConfig); }

void release_tiles() { _tile_release(); }

// scores [kCodes][kRows] of one block of codes, without bias
inline __attribute__((always_inline)) void multiply(const uint16_t* codes, const uint16_t* x, int64_t steps,
                                                    float* scores) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const uint16_t* more = codes + steps * kRegister;
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, codes + step * kRegister, 64);
    _tile_loadd(6, x + step * 2 * kRegister, 64);
    _tile_loadd(7, x + step * 2 * kRegister + kRegister, 64);
    _tile_loadd(5, more + step * kRegister, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, scores, kRows * 4);
  _tile_stored(1, scores + 16, kRows * 4);
  _tile_stored(2, scores + 16 * kRows, kRows * 4);
  _tile_stored(3, scores + 16 * kRows + 16, kRows * 4);
}

// The best of each group of codes of one block, [kCodes / kGroup][kRows], and of all so far.
inline __attribute__((always_inline)) void reduce_groups(const float* scores, const float* bias,
                                                         float* groups, float* best) {
  for (int half = 0; half < 2; ++half) {
    __m512 most = V::load(best + half * 16);
#pragma GCC unroll 4
    for (int g = 0; g < kCodes / kGroup; ++g) {
      const float* s = scores + g * kGroup * kRows + half * 16;
      __m512 top = _mm512_add_ps(V::load(s), V::set(bias[g * kGroup]));
#pragma GCC unroll 8
      for (int c = 1; c < kGroup; ++c)
        top = _mm512_max_ps(top, _mm512_add_ps(V::load(s + c * kRows), V::set(bias[g * kGroup + c])));
      V::store(groups + g * kRows + half * 16, top);
      most = _mm512_max_ps(top, most);
    }
    V::store(best + half * 16, most);
  }
}

void append_candidate(const MatrixSweep* s, int row, int32_t code, float score) {
  const int32_t n = s->counts[row];
  if (n > s->capacity) return;
  s->counts[row] = n + 1;
  if (n == s->capacity) return;
  s->candidates[int64_t(row) * s->capacity + n] = code;
  s->scores[int64_t(row) * s->capacity + n] = score;
}

// The scores of a chunk lie in a ring of one block more than a chunk has, so that the first products of
// the next chunk can be made while this one is searched.
constexpr int64_t kChunkBlocks = kChunk / kCodes, kAhead = 1, kRing = kChunkBlocks + kAhead;
constexpr int64_t kBlockScores = kCodes * kRows, kBlockGroups = kCodes / kGroup;

// Candidates in blocks first .. first + blocks - 1.
void find_candidates(const MatrixSweep* s, int64_t first, int64_t blocks, const float* ring,
                     const float* groups) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m256i column =
      _mm256_setr_epi32(0, kRows, 2 * kRows, 3 * kRows, 4 * kRows, 5 * kRows, 6 * kRows, 7 * kRows);
  // In the first chunks most groups hold the best of some row: a jump there would be guessed wrongly.
  const bool rarely = s->first_code + first * kCodes >= 4 * kChunk;
  for (int lane0 = 0; lane0 < kRows; lane0 += 16) {
    __m512 threshold = _mm512_sub_ps(V::load(s->best + lane0), V::load(s->margin + lane0));
    const __mmask16 over = _mm512_cmpgt_epi32_mask(V::load(s->counts + lane0), V::set(s->capacity));
    threshold = _mm512_mask_mov_ps(threshold, over, V::set(__builtin_inff()));
    float thresholds[16];
    V::store(thresholds, threshold);
    int32_t hits[kChunk / kGroup * 16 + 16];  // group * 16 + lane
    int n = 0;
    for (int g = 0; g < blocks * kBlockGroups; ++g) {
      const __mmask16 hit = _mm512_cmp_ps_mask(V::load(groups + g * kRows + lane0), threshold, _CMP_GE_OQ);
      if (rarely && !hit) continue;
      V::store(hits + n, _mm512_maskz_compress_epi32(hit, _mm512_add_epi32(lanes, V::set(g * 16))));
      n += __builtin_popcount(hit);
    }
    for (int h = 0; h < n; ++h) {
      const int g = hits[h] / 16, lane = hits[h] % 16;
      const int64_t block = first + g / kBlockGroups, inside = g % kBlockGroups * kGroup;
      const float* scores = ring + block % kRing * kBlockScores + inside * kRows + lane0 + lane;
      const __m256 bias = _mm256_loadu_ps(s->bias + block * kCodes + inside);
      const __m256 score = _mm256_add_ps(_mm256_i32gather_ps(scores, column, 4), bias);
      alignas(32) float values[kGroup];
      _mm256_store_ps(values, score);
      unsigned codes = _mm256_cmp_ps_mask(score, _mm256_set1_ps(thresholds[lane]), _CMP_GE_OQ);
      for (; codes; codes &= codes - 1) {
        const int c = __builtin_ctz(codes);
        append_candidate(s, lane0 + lane, s->first_code + int32_t(block * kCodes + inside) + c, values[c]);
      }
    }
  }
}

void sweep(const MatrixSweep* s) {
  float* ring = s->scratch;
  float* groups = s->scratch + kRing * kBlockScores;
  const int64_t block_size = 2 * s->steps * kRegister;
  for (int64_t b = 0; b < kAhead && b < s->blocks; ++b)
    multiply(s->codes + b * block_size, s->x, s->steps, ring + b * kBlockScores);
  int64_t first = 0;
  for (int64_t b = 0; b < s->blocks; ++b) {
    const int64_t ahead = b + kAhead;
    if (ahead < s->blocks)
      multiply(s->codes + ahead * block_size, s->x, s->steps, ring + ahead % kRing * kBlockScores);
    reduce_groups(ring + b % kRing * kBlockScores, s->bias + b * kCodes,
                  groups + (b - first) * kBlockGroups * kRows, s->best);
    if (b + 1 - first == kChunkBlocks || b + 1 == s->blocks) {
      find_candidates(s, first, b + 1 - first, ring, groups);
      first = b + 1;
    }
  }
}

double score(const float* x, const float* e, int64_t dim, int l2) {
  const __m512d half = _mm512_set1_pd(l2 ? 0.5 : 0.0);
  __m512d sum = _mm512_setzero_pd();
  int64_t d = 0;
  for (; d + 8 <= dim; d += 8) {
    const __m512d code = _mm512_cvtps_pd(_mm256_loadu_ps(e + d)), row = _mm512_cvtps_pd(_mm256_loadu_ps(x + d));
    sum = _mm512_fmadd_pd(_mm512_fmsub_pd(half, code, row), code, sum);
  }
  double total = _mm512_reduce_add_pd(sum);
  for (; d < dim; ++d) total += ((l2 ? 0.5 * double(e[d]) : 0.0) - double(x[d])) * double(e[d]);
  return total;
}

// MatrixKernels::peak: the four sums of a sweep, each of 16 by 16 products of 32 numbers.
int64_t peak(int64_t rounds) {
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  release_tiles();
  return rounds * 4 * 2 * 16 * 16 * 32;
}

constexpr MatrixKernels kernel_table() {
  MatrixKernels table{};
  table.pack_codes = pack_codes;
  table.pack_rows = pack_rows;
  table.configure_tiles = configure_tiles;
  table.release_tiles = release_tiles;
  table.sweep = sweep;
  table.score = score;
  table.peak = peak;
  return table;
}

}  // namespace

constexpr MatrixKernels kernels_amx = kernel_table();

}  // namespace vq_cpu
