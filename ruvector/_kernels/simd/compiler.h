/* What differs between compilers, and nothing else. */
#ifndef RV_COMPILER_H
#define RV_COMPILER_H

#include <stddef.h>
#include <stdint.h>

#if defined(_MSC_VER) && !defined(__clang__)
#define RV_INLINE __forceinline
#define RV_NOINLINE __declspec(noinline)
#define RV_RESTRICT __restrict
#define RV_UNROLL
#define RV_PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#else
#define RV_INLINE inline __attribute__((always_inline))
#define RV_NOINLINE __attribute__((noinline))
#define RV_RESTRICT __restrict__
#if defined(__clang__)
#define RV_UNROLL _Pragma("unroll")
#else
#define RV_UNROLL _Pragma("GCC unroll 32")
#endif
#define RV_PREFETCH(p) __builtin_prefetch(p)
#endif

#define RV_PASTE_(a, b) a##b
#define RV_PASTE(a, b) RV_PASTE_(a, b)

#endif
