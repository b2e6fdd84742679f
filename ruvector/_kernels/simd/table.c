/* The dispatch table: every instruction set of this build that this machine can run. */
#include "table.h"

#include <string.h>

#include "cpu.h"

static const rv_table *tables[8];
static int count;
static const rv_table *current;

static void fill(void)
{
    if (count) return;
    tables[count++] = &rv_table_scalar;
#if RV_HAVE_X86
    const rv_cpu cpu = rv_detect_cpu();
    if (cpu.avx2) tables[count++] = &rv_table_avx2;
    if (cpu.avx512) tables[count++] = &rv_table_avx512;
    if (cpu.avx512_bf16) tables[count++] = rv_make_table_avx512_bf16();
#endif
#if RV_HAVE_NEON
    tables[count++] = &rv_table_neon;
#endif
    current = tables[count - 1];
}

int rv_isa_count(void)
{
    fill();
    return count;
}

const char *rv_isa_name(int index)
{
    return tables[index]->isa;
}

int rv_use_isa(const char *name)
{
    fill();
    for (int i = 0; i < count; i++)
        if (strcmp(name, tables[i]->isa) == 0) {
            current = tables[i];
            return 0;
        }
    return -1;
}

const rv_table *rv_tiles(void)
{
    return current;
}
