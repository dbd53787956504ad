// The kernels of CPUs with AVX2, FMA and F16C.
#include "cpu/simd_avx2.h"

#include "cpu/kernel_table.h"

namespace vq_cpu {

constexpr Kernels kernels_avx2 = kernel_table();

}  // namespace vq_cpu
