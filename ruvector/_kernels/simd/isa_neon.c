/* NEON, which every AArch64 processor has. */
#include "table.h"
#if RV_HAVE_NEON
#include "vec_neon.h"
#include "isa.inc.h"
#else
typedef int rv_isa_neon_is_empty;
#endif
