// Which instruction sets the machine has, and the choice between the kernel tables.
#include "cpu/narrow.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vq_cpu {
namespace {

#if defined(__x86_64__) || defined(__i386__)

struct Cpuid {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Cpuid(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

bool bit(unsigned word, int n) { return (word >> n) & 1u; }

// Which register files the operating system saves (XCR0).
unsigned saved_state() {
  if (!bit(Cpuid(1, 0).c, 27)) return 0;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool has_avx2() {
  const Cpuid one(1, 0), seven(7, 0);
  return (saved_state() & 0x6) == 0x6 && bit(one.c, 28) && bit(one.c, 12) && bit(one.c, 29) &&
         bit(seven.b, 5);  // avx, fma, f16c, avx2
}

bool has_avx512() {
  const Cpuid seven(7, 0);
  return has_avx2() && (saved_state() & 0xe6) == 0xe6 && bit(seven.b, 16) && bit(seven.b, 17) &&
         bit(seven.b, 30) && bit(seven.b, 31);  // f, dq, bw, vl
}

bool has_avx512vnni() { return has_avx512() && bit(Cpuid(7, 0).c, 11); }

bool has_avx512bf16() { return has_avx512vnni() && bit(Cpuid(7, 1).a, 5); }

// Linux hands out the tile registers only on request (arch/x86/include/uapi/asm/prctl.h).
bool request_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  const long arch_req_xcomp_perm = 0x1023, xtile_data = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xtile_data) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  const Cpuid seven(7, 0);
  return has_avx512bf16() && (saved_state() & 0x60000) == 0x60000 && bit(seven.d, 22) && bit(seven.d, 24) &&
         request_tiles();  // amx-bf16, amx-tile
}

#else

bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512vnni() { return false; }
bool has_avx512bf16() { return false; }
bool has_amx() { return false; }

#endif

bool detect(int isa) {
  switch (isa) {
    case VQ_ISA_PORTABLE:
      return true;
#ifdef __aarch64__
    case VQ_ISA_NEON:
      return true;
#endif
    case VQ_ISA_AVX2:
      return has_avx2();
    case VQ_ISA_AVX512:
      return has_avx512();
    case VQ_ISA_AVX512VNNI:
      return has_avx512vnni();
    case VQ_ISA_AVX512BF16:
      return has_avx512bf16();
    case VQ_ISA_AMX:
      return has_amx();
    default:
      return false;
  }
}

int best_isa() {
  for (int isa = VQ_ISA_COUNT - 1; isa > VQ_ISA_PORTABLE; --isa)
    if (vq_cpu_isa_compiled(isa) && vq_cpu_isa_supported(isa)) return isa;
  return VQ_ISA_PORTABLE;
}

int chosen = -1;

}  // namespace
}  // namespace vq_cpu

extern "C" const char* vq_cpu_isa_name(int isa) {
  static const char* const names[VQ_ISA_COUNT] = {"portable",   "neon",       "avx2", "avx512",
                                                  "avx512vnni", "avx512bf16", "amx"};
  return names[isa];
}

extern "C" int vq_cpu_isa_compiled(int isa) {
  switch (isa) {
    case VQ_ISA_PORTABLE:
      return 1;
#ifdef VQ_HAVE_NEON
    case VQ_ISA_NEON:
      return 1;
#endif
#ifdef VQ_HAVE_AVX2
    case VQ_ISA_AVX2:
      return 1;
#endif
#ifdef VQ_HAVE_AVX512
    case VQ_ISA_AVX512:
      return 1;
#endif
#if defined(VQ_HAVE_AVX512VNNI) && defined(VQ_HAVE_AVX512)
    case VQ_ISA_AVX512VNNI:
      return 1;
#endif
#if defined(VQ_HAVE_AVX512BF16) && defined(VQ_HAVE_AVX512VNNI) && defined(VQ_HAVE_AVX512)
    case VQ_ISA_AVX512BF16:
      return 1;
#endif
#if defined(VQ_HAVE_AMX) && defined(VQ_HAVE_AVX512)
    case VQ_ISA_AMX:
      return 1;
#endif
    default:
      return 0;
  }
}

extern "C" int vq_cpu_isa_supported(int isa) {
  using vq_cpu::detect;
  static const bool supported[VQ_ISA_COUNT] = {detect(0), detect(1), detect(2), detect(3),
                                               detect(4), detect(5), detect(6)};
  return supported[isa];
}

extern "C" int vq_cpu_isa(void) {
  static const int best = vq_cpu::best_isa();
  return vq_cpu::chosen >= 0 ? vq_cpu::chosen : best;
}

extern "C" int vq_cpu_use_isa(int isa) {
  if (isa >= VQ_ISA_COUNT) return 1;
  if (isa >= 0 && !(vq_cpu_isa_compiled(isa) && vq_cpu_isa_supported(isa))) return 1;
  vq_cpu::chosen = isa;
  return 0;
}

namespace vq_cpu {

const Kernels* kernels_in_use() {
  switch (vq_cpu_isa()) {
#ifdef VQ_HAVE_AVX512
    case VQ_ISA_AMX:
    case VQ_ISA_AVX512BF16:
    case VQ_ISA_AVX512VNNI:
    case VQ_ISA_AVX512:
      return &kernels_avx512;
#endif
#ifdef VQ_HAVE_AVX2
    case VQ_ISA_AVX2:
      return &kernels_avx2;
#endif
#ifdef VQ_HAVE_NEON
    case VQ_ISA_NEON:
      return &kernels_neon;
#endif
    default:
      return &kernels_portable;
  }
}

const MatrixKernels* matrix_kernels_in_use() {
#ifdef VQ_HAVE_AMX
  if (vq_cpu_isa() == VQ_ISA_AMX) return &kernels_amx;
#endif
  return nullptr;
}

const NarrowKernels* int8_kernels_in_use() {
#ifdef VQ_HAVE_AVX512VNNI
  if (vq_cpu_isa() >= VQ_ISA_AVX512VNNI) return &kernels_int8_avx512vnni;
#endif
  return nullptr;
}

const NarrowKernels* bfloat16_kernels_in_use() {
#ifdef VQ_HAVE_AVX512BF16
  if (vq_cpu_isa() >= VQ_ISA_AVX512BF16) return &kernels_bfloat16_avx512bf16;
#endif
  return nullptr;
}

}  // namespace vq_cpu
