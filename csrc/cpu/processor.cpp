// What the processor has and the operating system saves.
#include "cpu/processor.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace vq_cpu {

#if defined(__x86_64__) || defined(__i386__)

namespace {

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

}  // namespace

bool has_avx2() {
  const Cpuid one(1, 0), seven(7, 0);
  return (saved_state() & 0x6) == 0x6 && bit(one.c, 28) && bit(one.c, 12) && bit(one.c, 29) &&
         bit(seven.b, 5);  // avx, fma, f16c, avx2
}

bool has_avxvnni() {
#ifdef VQ_AVXVNNI_BY_AVX512
  return has_avx512vnni();  // a build for tests, where its sources were compiled to the form that AVX-512 has
#else
  return has_avx2() && bit(Cpuid(7, 1).a, 4);
#endif
}

bool has_avx512() {
  const Cpuid seven(7, 0);
  return has_avx2() && (saved_state() & 0xe6) == 0xe6 && bit(seven.b, 16) && bit(seven.b, 17) &&
         bit(seven.b, 30) && bit(seven.b, 31);  // f, dq, bw, vl
}

bool has_avx512vnni() { return has_avx512() && bit(Cpuid(7, 0).c, 11); }

bool has_avx512bf16() { return has_avx512vnni() && bit(Cpuid(7, 1).a, 5); }

#ifdef VQ_EMULATED_TILES
bool has_amx() { return has_avx512bf16(); }  // a build for tests, with tiles in plain loops
bool has_amxint8() { return has_amx(); }
#else
namespace {

// Linux hands out the tile registers only on request (arch/x86/include/uapi/asm/prctl.h).
bool request_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  const long arch_req_xcomp_perm = 0x1023, xtile_data = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xtile_data) == 0;
#else
  return false;
#endif
}

}  // namespace

bool has_amx() {
  const Cpuid seven(7, 0);
  return has_avx512bf16() && (saved_state() & 0x60000) == 0x60000 && bit(seven.d, 22) && bit(seven.d, 24) &&
         request_tiles();  // amx-bf16, amx-tile
}

bool has_amxint8() { return has_amx() && bit(Cpuid(7, 0).d, 25); }
#endif

#else

bool has_avx2() { return false; }
bool has_avxvnni() { return false; }
bool has_avx512() { return false; }
bool has_avx512vnni() { return false; }
bool has_avx512bf16() { return false; }
bool has_amx() { return false; }
bool has_amxint8() { return false; }

#endif

#if defined(__aarch64__)

namespace {

// Bits of arch/arm64/include/uapi/asm/hwcap.h; other systems are not asked.
#if defined(__linux__)
bool hwcap(int n) { return (getauxval(AT_HWCAP) >> n) & 1ul; }
bool hwcap2(int n) { return (getauxval(AT_HWCAP2) >> n) & 1ul; }
#else
bool hwcap(int) { return false; }
bool hwcap2(int) { return false; }
#endif

}  // namespace

bool has_neon() { return true; }
bool has_dotprod() { return hwcap(20); }
bool has_i8mm() { return has_dotprod() && hwcap2(13); }

#else

bool has_neon() { return false; }
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }

#endif

}  // namespace vq_cpu
