// The bfloat16 first pass with AVX-512 BF16.
#include "cpu/simd_avx512.h"

#include "cpu/kernels.h"
#include "cpu/narrow.h"
#include "cpu/narrow_lanes_avx512.h"
#include "cpu/narrow_score_avx512.h"

namespace vq_cpu {
namespace {

struct N : NarrowLanes {
  static constexpr int UNIT = 2;
  static constexpr bool ROUNDS = true, SEVEN_BITS = false;

  static float levels(int64_t) { return 127.0f; }  // of a scale that only sorts codes

  // Two products of bfloat16 in float32. Their order and rounding are not assumed; subnormals count as zero.
  static V::I multiply_add(V::I sum, V::I row, V::I code) {
    return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), (__m512bh)row, (__m512bh)code));
  }
  static V::F scale_of_pairs(V::F, float) { return V::set(1.0f); }
  static V::F add_product(V::I sum, V::F, V::F rest) { return V::add(_mm512_castsi512_ps(sum), rest); }

  static Group upper(const NarrowCodes* codes, const NarrowTile* t, int tile, int row, int64_t group) {
    const int64_t first = group * 8;
    const int32_t *e = codes->codes + first * codes->steps, *x = t->rows + row;
    __m256 sum = _mm256_setzero_ps();  // in the order of the sweep
    for (int64_t step = 0; step < codes->steps; ++step)
      sum = _mm256_dpbf16_ps(sum, (__m256bh)_mm256_set1_epi32(x[step * tile]), (__m256bh)load(e + step * 8));
    return _mm256_add_ps(sum, rest(codes, t, row, first));
  }

  struct Scales {
    explicit Scales(V::F) {}
  };
  struct CodeSums {
    V::F lost = V::set(0.0f), kept = V::set(0.0f);
  };

  // Two dimensions in the halves of each lane. Raises `lost` by what they miss, squared.
  static V::I pack_row(const V::F (&value)[2], const Scales&, V::F& lost) {
    V::I bits[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      bits[i] = rounded(value[i]);
      const V::F rest = V::sub(value[i], _mm512_castsi512_ps(bits[i]));
      lost = V::fma(rest, rest, lost);
    }
    return _mm512_or_si512(_mm512_srli_epi32(bits[0], 16), bits[1]);
  }
  // Sixteen dimensions of a code.
  static void pack_code(V::F value, const Scales&, CodeSums& sums, int32_t* words) {
    const V::I bits = rounded(value);
    const V::F kept = _mm512_castsi512_ps(bits), rest = V::sub(value, kept);
    sums.lost = V::fma(rest, rest, sums.lost);
    sums.kept = V::fma(kept, kept, sums.kept);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
  }
  static int32_t start(const CodeSums&) { return 0; }

 private:
  // Rounded to bfloat16, the upper halves of the lanes.
  static V::I rounded(V::F v) {
    const __m256i half = (__m256i)_mm512_cvtneps_pbh(v);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
  }
};

}  // namespace
}  // namespace vq_cpu

#include "cpu/narrow_products.h"
#include "cpu/narrow_table.h"

namespace vq_cpu {

constexpr NarrowKernels kernels_bfloat16_avx512bf16 = narrow_table();

}  // namespace vq_cpu
