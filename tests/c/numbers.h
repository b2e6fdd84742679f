/* What the programs of this folder draw and read numbers with. */
#include <stddef.h>

#include "table.h"

static unsigned long long seed = 1;

/* From -1/2 to 1/2. */
static inline double uniform(void)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(seed >> 11) / 9007199254740992.0 - 0.5;
}

static inline double get(const void *x, ptrdiff_t i, int dtype)
{
    return dtype == RV_F32 ? ((const float *)x)[i] : ((const double *)x)[i];
}

static inline void put(void *x, ptrdiff_t i, int dtype, double value)
{
    if (dtype == RV_F32) ((float *)x)[i] = (float)value;
    else ((double *)x)[i] = value;
}
