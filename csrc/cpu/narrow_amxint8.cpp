// The int8 first pass in the AMX tile unit: 64 bytes of eight codes times those of 16 rows at a time.
#include <string.h>

#include "cpu/simd_avx512.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_int8.h"
#include "cpu/narrow_score_avx512.h"
#include "cpu/narrow_vnni_avx512.h"

namespace vq_cpu {
namespace {

constexpr int64_t kTileRows = V::W * V::VECTORS;
constexpr int64_t kStepsOfProduct = 16;
constexpr int64_t kTileCodes = kStepsOfProduct * V::PANEL;  // words of a tile of codes

// Tiles 0 to 2: sums; 3: codes; 4 to 6: rows.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {8, 8, 8, 8, 16, 16, 16};
};

// Not on the stack: GCC does not see that the instruction reads all of it.
const TileConfig kTileConfig;

// Rows stay as they are packed, [step][row]; 16 steps of a group's codes become [code][step].
inline void arrange_rows(int32_t*, int64_t) {}
inline void arrange_codes(int32_t* codes, int64_t steps) {
  for (int64_t step = 0; step < steps; step += kStepsOfProduct, codes += kTileCodes) {
    int32_t turned[V::PANEL][kStepsOfProduct];
    for (int64_t i = 0; i < kTileCodes; ++i) turned[i % V::PANEL][i / V::PANEL] = codes[i];
    memcpy(codes, turned, sizeof turned);
  }
}

// sum = start + rows . codes of one group.
template <int R>
inline __attribute__((always_inline)) void narrow_products(const int32_t* e, const int32_t* start, const int32_t* x,
                                                           int64_t steps, V::I (&sum)[R][V::PANEL]) {
  constexpr int64_t kPitch = kTileRows * 4;
  alignas(64) int32_t products[R][V::PANEL][V::W];
  _tile_zero(0);
  if (R > 1) _tile_zero(1);
  if (R > 2) _tile_zero(2);
  for (int64_t step = 0; step < steps; step += kStepsOfProduct) {
    _tile_loadd(3, e, 64);
    _tile_loadd(4, x, kPitch);
    _tile_dpbsud(0, 3, 4);
    if (R > 1) {
      _tile_loadd(5, x + V::W, kPitch);
      _tile_dpbsud(1, 3, 5);
    }
    if (R > 2) {
      _tile_loadd(6, x + 2 * V::W, kPitch);
      _tile_dpbsud(2, 3, 6);
    }
    e += kTileCodes;
    x += kStepsOfProduct * kTileRows;
  }
  _tile_stored(0, products[0], 64);
  if (R > 1) _tile_stored(1, products[R > 1 ? 1 : 0], 64);
  if (R > 2) _tile_stored(2, products[R > 2 ? 2 : 0], 64);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < V::PANEL; ++c)
      sum[r][c] = _mm512_add_epi32(V::load(products[r][c]), V::set(start[c]));
}

// NarrowKernels::peak.
int64_t narrow_peak(int64_t rounds) {
  _tile_loadconfig(&kTileConfig);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbsud(0, 3, 4);
    _tile_dpbsud(1, 3, 4);
    _tile_dpbsud(2, 3, 4);
  }
  _tile_release();
  return rounds * 3 * 2 * kTileCodes * 4 * V::W;
}

struct N : Int8<Vnni> {
  static Group upper(const NarrowCodes* codes, const NarrowTile* t, int tile, int row, int64_t group) {
    const int64_t first = group * V::PANEL;
    const int32_t* e = codes->codes + first * codes->steps;
    const V::I column = _mm512_mullo_epi32(
        V::set(tile), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    V::I sum[V::PANEL];
    for (V::I& s : sum) s = V::set(int32_t(0));
    for (int64_t step = 0; step < codes->steps; step += kStepsOfProduct, e += kTileCodes) {
      const V::I x = _mm512_i32gather_epi32(column, t->rows + row + step * tile, 4);
      for (int c = 0; c < V::PANEL; ++c) sum[c] = _mm512_dpbusd_epi32(sum[c], x, V::load(e + c * V::W));
    }
    alignas(32) int32_t products[V::PANEL];
    for (int c = 0; c < V::PANEL; ++c) products[c] = codes->start[first + c] + _mm512_reduce_add_epi32(sum[c]);
    return upper_of(load(products), codes, t, row, first);
  }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_table.h"

namespace vq_cpu {
namespace {

void search_in_tiles(const NarrowCodes* codes, const NarrowFactors* factors, NarrowTile* t) {
  _tile_loadconfig(&kTileConfig);
  narrow_search(codes, factors, t);
  _tile_release();
}

constexpr NarrowKernels tile_table() {
  NarrowKernels table = narrow_table();
  table.search = search_in_tiles;
  return table;
}

}  // namespace

constexpr NarrowKernels kernels_int8_amxint8 = tile_table();

}  // namespace vq_cpu
