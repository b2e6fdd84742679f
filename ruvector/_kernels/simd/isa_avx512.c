/* AVX-512 (F, DQ, BW, VL) with FMA and F16C: Skylake-X, Zen 4 and later. */
#include "table.h"
#if RV_HAVE_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#endif

#include "vec_avx512.h"
#include "isa.inc.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int rv_isa_avx512_is_empty;
#endif
