#include "cpu/first_pass.h"

namespace vq_cpu {
namespace {

// Below this, padding the dimensions to the depth of a tile costs more than the matrix unit gains.
constexpr int64_t kMatrixLeastDim = 16;
// Below this (codes times dimensions) what else a row costs in tiles is more than they save against int8.
constexpr int64_t kMatrixLeastWork = 65536;
// Below these, packing and finishing a row costs more than a narrow sweep gains.
constexpr int64_t kInt8LeastDim = 16;
constexpr int64_t kInt8LeastWork = 8192;  // of codes times dimensions
// Up to so many rows reading the codes as they are is faster than packing them for a pass that is itself faster than
// float32 (much, or little: int16 and int8 of seven bits), or for float32.
constexpr int64_t kFewRows = 64, kFewRowsSevenBits = 128, kFewRowsFloat32 = 192;
// The same of an int16 sweep; and of int8 with seven bits, which is the faster from some work on, up to some dimensions.
constexpr int64_t kInt16LeastDim = 16, kInt16LeastWork = 4096;
constexpr int64_t kSevenBitsLeastWork = 32768, kSevenBitsMostDim = 256;
// Beyond this a sum of int8 products could overflow, and an int16 sum has fewer than 2^8 levels left.
constexpr int64_t kInt8MostDim = 65536;
// Beyond this the rounding of a bfloat16 sum has no useful bound, and from 41,934 on none.
constexpr int64_t kBfloat16MostDim = 16384;

int chosen = -1;

FirstPass float32_first() { return FirstPass{VQ_FLOAT32_FIRST}; }

FirstPass int8_first(int64_t dim) {
  const NarrowKernels* bfloat16 = dim <= kBfloat16MostDim ? bfloat16_kernels_in_use() : nullptr;
  return FirstPass{VQ_INT8_FIRST, nullptr, int8_kernels_in_use(), bfloat16 ? bfloat16 : int16_kernels_in_use()};
}

FirstPass matrix_first(int64_t dim) {
  FirstPass first = int8_kernels_in_use() && dim <= kInt8MostDim ? int8_first(dim) : float32_first();
  first.kind = VQ_BFLOAT16_FIRST;
  first.matrix = matrix_kernels_in_use();
  return first;
}

FirstPass int16_first() { return FirstPass{VQ_INT16_FIRST, nullptr, int16_kernels_in_use()}; }

FirstPass bfloat16_first() { return FirstPass{VQ_BFLOAT16_FIRST, nullptr, bfloat16_kernels_in_use()}; }

}  // namespace

// A search of lower precision takes it only where its first pass is exact as well, so that a row's index does not
// depend on its batch there either.
bool rows_are_few(const VqRows* x, int64_t codes, int precision) {
  if (chosen >= 0) return chosen == VQ_DIRECT_FIRST && precision == VQ_EXACT;
  const FirstPass packed = choose_first_pass(x->dim, codes);
  if (precision != VQ_EXACT && (packed.matrix || !packed.narrow)) return false;
  if (packed.kind == VQ_FLOAT32_FIRST) return x->batches * x->rows <= kFewRowsFloat32;
  const bool little = packed.kind == VQ_INT16_FIRST || (packed.narrow && packed.narrow->seven_bits);
  return x->batches * x->rows <= (little ? kFewRowsSevenBits : kFewRows);
}

FirstPass choose_first_pass(int64_t dim, int64_t codes) {
  const bool int8 = int8_kernels_in_use() && dim <= kInt8MostDim;
  const bool int16 = int16_kernels_in_use() && dim <= kInt8MostDim;
  const bool bfloat16 = bfloat16_kernels_in_use() && dim <= kBfloat16MostDim;
  if (chosen == VQ_FLOAT32_FIRST) return float32_first();
  if (chosen == VQ_INT8_FIRST && int8) return int8_first(dim);
  if (chosen == VQ_INT16_FIRST && int16) return int16_first();
  if (chosen == VQ_BFLOAT16_FIRST && matrix_kernels_in_use()) return matrix_first(dim);
  if (chosen == VQ_BFLOAT16_FIRST && bfloat16) return bfloat16_first();
  if (matrix_kernels_in_use() && dim >= kMatrixLeastDim && (!int8 || codes * dim >= kMatrixLeastWork))
    return matrix_first(dim);
  const bool seven_bits = int8 && int8_kernels_in_use()->seven_bits;
  const int64_t least_work = seven_bits ? kSevenBitsLeastWork : kInt8LeastWork;
  const int64_t most_dim = seven_bits ? kSevenBitsMostDim : kInt8MostDim;
  if (int8 && dim >= kInt8LeastDim && dim <= most_dim && codes * dim >= least_work) return int8_first(dim);
  return int16 && dim >= kInt16LeastDim && codes * dim >= kInt16LeastWork ? int16_first() : float32_first();
}

}  // namespace vq_cpu

extern "C" const char* vq_cpu_first_pass_name(int pass) {
  static const char* const names[VQ_FIRST_PASS_COUNT] = {"float32", "bfloat16", "int8", "direct", "int16"};
  return names[pass];
}

extern "C" int vq_cpu_first_pass_usable(int pass) {
  using namespace vq_cpu;
  switch (pass) {
    case VQ_FLOAT32_FIRST:
    case VQ_DIRECT_FIRST:
      return 1;
    case VQ_BFLOAT16_FIRST:
      return matrix_kernels_in_use() || bfloat16_kernels_in_use();
    case VQ_INT8_FIRST:
      return int8_kernels_in_use() != nullptr;
    case VQ_INT16_FIRST:
      return int16_kernels_in_use() != nullptr;
    default:
      return 0;
  }
}

extern "C" int vq_cpu_first_pass(const VqRows* x, int64_t codes) {
  using namespace vq_cpu;
  return rows_are_few(x, codes, VQ_EXACT) ? VQ_DIRECT_FIRST : choose_first_pass(x->dim, codes).kind;
}

extern "C" int vq_cpu_use_first_pass(int pass) {
  if (pass >= 0 && !vq_cpu_first_pass_usable(pass)) return 1;
  vq_cpu::chosen = pass;
  return 0;
}
