/* AVX2 with FMA and F16C: Haswell, Zen and later. */
#include "table.h"
#if RV_HAVE_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c")
#endif

#include "vec_avx2.h"
#include "isa.inc.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int rv_isa_avx2_is_empty;
#endif
