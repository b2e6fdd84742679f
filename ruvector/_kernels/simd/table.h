/* Which table of tiles runs: chosen once from what the CPU and the OS support. */
#ifndef RV_TABLE_H
#define RV_TABLE_H

#include "tiles.h"

#define RV_HAVE_X86 0
#define RV_HAVE_NEON 0
#if defined(RV_UNKNOWN_ARCHITECTURE)
/* Tests ask for what any other architecture compiles. */
#elif defined(__x86_64__) || defined(_M_X64)
#undef RV_HAVE_X86
#define RV_HAVE_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#undef RV_HAVE_NEON
#define RV_HAVE_NEON 1
#endif

#ifdef __cplusplus
extern "C" {
#endif

extern const rv_table rv_table_scalar, rv_table_avx2, rv_table_avx512,
    rv_table_neon;
/* The table of AVX-512 with other tiles for bfloat16. */
const rv_table *rv_make_table_avx512_bf16(void);

/* Number of instruction sets of this build that this machine can run, and their names from
 * the most portable to the fastest. */
int rv_isa_count(void);
const char *rv_isa_name(int index);

/* Make `name` the instruction set in use; 0 on success, -1 if it is unknown here. */
int rv_use_isa(const char *name);

/* The table in use. */
const rv_table *rv_tiles(void);

#ifdef __cplusplus
}
#endif
#endif
