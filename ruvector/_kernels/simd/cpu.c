/* CPUID says what the CPU has, XGETBV which register files the operating system saves:
 * without the second an AVX instruction can fault although CPUID lists it (Intel SDM vol. 1,
 * 14.3 and 15.2). */
#include "cpu.h"
#include "table.h"

#if RV_HAVE_X86
#include <stdint.h>
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    __cpuidex((int *)r, (int)leaf, (int)sub);
}
static uint64_t xcr0(void) { return _xgetbv(0); }
#else
#include <cpuid.h>
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]);
}
static uint64_t xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}
#endif

#define BIT(word, n) (((word) >> (n)) & 1u)

rv_cpu rv_detect_cpu(void)
{
    rv_cpu cpu = {0, 0, 0};
    uint32_t top[4], one[4], seven[4], seven1[4] = {0, 0, 0, 0};
    cpuid(0, 0, top);
    if (top[0] < 7) return cpu;
    cpuid(1, 0, one);
    cpuid(7, 0, seven);
    if (seven[0] >= 1) cpuid(7, 1, seven1);
    if (!BIT(one[2], 27)) return cpu; /* OSXSAVE */

    const uint64_t saved = xcr0();
    const int ymm = (saved & 0x06) == 0x06; /* XMM, upper halves of YMM */
    const int zmm = (saved & 0xe6) == 0xe6; /* beside them mask registers and ZMM */
    cpu.avx2 = ymm && BIT(one[2], 28) && BIT(one[2], 12) && BIT(one[2], 29) && BIT(seven[1], 5);
    cpu.avx512 = cpu.avx2 && zmm && BIT(seven[1], 16) && BIT(seven[1], 17) &&
                 BIT(seven[1], 30) && BIT(seven[1], 31);
    cpu.avx512_bf16 = cpu.avx512 && BIT(seven1[0], 5);
    return cpu;
}
#else
rv_cpu rv_detect_cpu(void)
{
    rv_cpu cpu = {0, 0, 0};
    return cpu;
}
#endif
