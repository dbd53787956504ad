// The AMX tile unit in plain loops, in place of its intrinsics: included before all else (-include).
#pragma once

// GCC 12 takes its own undefined vectors for uninitialised ones (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stdint.h>
#include <string.h>

namespace emulated_tiles {

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

inline thread_local Config config;  // palette 0: not configured
inline thread_local uint8_t tiles[8][16][64];

inline void need_configuration(int tile) {
  if (config.palette != 1 || !config.rows[tile]) __builtin_trap();
}

inline void load_config(const void* p) {
  memcpy(&config, p, sizeof config);
  memset(tiles, 0xa5, sizeof tiles);  // what is read before it is written is wrong
}

inline void release() { config = {}; }

inline void zero(int tile) {
  need_configuration(tile);
  memset(tiles[tile], 0, sizeof tiles[tile]);
}

inline void load(int tile, const void* p, int64_t stride) {
  need_configuration(tile);
  for (int i = 0; i < config.rows[tile]; ++i)
    memcpy(tiles[tile][i], static_cast<const uint8_t*>(p) + i * stride, config.bytes[tile]);
}

inline void store(int tile, void* p, int64_t stride) {
  need_configuration(tile);
  for (int i = 0; i < config.rows[tile]; ++i)
    memcpy(static_cast<uint8_t*>(p) + i * stride, tiles[tile][i], config.bytes[tile]);
}

// sum += a . b: 4-byte elements of a's rows with those of b's columns, by `product`.
template <class T, class Product>
void multiply(int sum, int a, int b, Product product) {
  need_configuration(sum);
  need_configuration(a);
  need_configuration(b);
  if (config.rows[sum] != config.rows[a] || config.bytes[a] != 4 * config.rows[b]) __builtin_trap();
  for (int m = 0; m < config.rows[sum]; ++m)
    for (int n = 0; n < config.bytes[sum] / 4; ++n) {
      T total;
      memcpy(&total, &tiles[sum][m][4 * n], 4);
      for (int k = 0; k < config.rows[b]; ++k) total = product(total, &tiles[a][m][4 * k], &tiles[b][k][4 * n]);
      memcpy(&tiles[sum][m][4 * n], &total, 4);
    }
}

inline int32_t signed_by_unsigned(int32_t sum, const uint8_t* a, const uint8_t* b) {
  for (int i = 0; i < 4; ++i) sum += int32_t(int8_t(a[i])) * int32_t(b[i]);
  return sum;
}

inline float bfloat16_pairs(float sum, const uint8_t* a, const uint8_t* b) {
  for (int i = 0; i < 2; ++i) {
    uint16_t half[2];
    memcpy(&half[0], a + 2 * i, 2);
    memcpy(&half[1], b + 2 * i, 2);
    const uint32_t bits[2] = {uint32_t(half[0]) << 16, uint32_t(half[1]) << 16};
    float value[2];
    memcpy(value, bits, sizeof value);
    sum += value[0] * value[1];
  }
  return sum;
}

}  // namespace emulated_tiles

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#define _tile_loadconfig(p) emulated_tiles::load_config(p)
#define _tile_release() emulated_tiles::release()
#define _tile_zero(tile) emulated_tiles::zero(tile)
#define _tile_loadd(tile, p, stride) emulated_tiles::load(tile, p, stride)
#define _tile_stored(tile, p, stride) emulated_tiles::store(tile, p, stride)
#define _tile_dpbsud(sum, a, b) emulated_tiles::multiply<int32_t>(sum, a, b, emulated_tiles::signed_by_unsigned)
#define _tile_dpbf16ps(sum, a, b) emulated_tiles::multiply<float>(sum, a, b, emulated_tiles::bfloat16_pairs)
