// The two smallest of positive scores, by their bits: those of positive floats are ordered as integers, of which newer
// GPUs take the minimum of three in one instruction. The column of a code takes the low bits, so that minima carry it
// along and of equal scores the lower column is the smaller number. hopper_search.cu packs the significands of scores
// alone, in a window of one exponent, and shares the rest.
#pragma once

#include "common.cuh"

namespace vq_cuda {

// What a thread keeps of a row: bits of shifted scores, the column among its own of a tile in the low ones.
struct PackedBest {
  int value = 0x7fffffff;
  int second = 0x7fffffff;
  int tile = 0;
};
struct PackedHalves {  // no array of arrays: see mma_tiles.cuh
  PackedBest row[2];
};

// `mask` clears the column's bits.
template <bool EXACT>
__device__ inline void offer_packed(PackedBest& best, int low, int second, int tile, int mask) {
  // Of equal scores the earlier tile wins, whatever their columns.
  const bool take = low < (best.value & mask);
  if (EXACT) best.second = min(min(best.second, second), max(low, best.value));
  best.value = take ? low : best.value;
  best.tile = take ? tile : best.tile;
}

// The two smallest of a thread's columns of a tile, or the smallest alone.
template <bool EXACT>
__device__ inline void join_packed(int a, int b, int& low, int& second) {
  if (!EXACT) {
    low = min(min(low, a), b);
    return;
  }
  const int less = min(a, b), more = max(a, b);
  second = min(min(second, more), max(low, less));
  low = min(low, less);
}

// fmaf(bias, scale, product) with the column in its low bits.
__device__ inline int packed_score(float bias, float scale, float product, int mask, int column) {
  return static_cast<int>(__float_as_uint(fmaf(bias, scale, product)) & static_cast<unsigned>(mask)) | column;
}

}  // namespace vq_cuda
