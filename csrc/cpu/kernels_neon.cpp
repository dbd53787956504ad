// The kernels of 64-bit Arm processors.
#include "cpu/simd_neon.h"

#include "cpu/kernel_table.h"

namespace vq_cpu {

constexpr Kernels kernels_neon = kernel_table();

}  // namespace vq_cpu
