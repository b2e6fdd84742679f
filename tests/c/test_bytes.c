/* Rows of whole numbers and their scales against a naive double reference, on every
 * instruction set of this machine: how they are made, widened, scored and summed. Output and
 * arguments as those of test_tiles.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#define HEADS 2
#define GROUP 3
#define MOST 160
#define KEYS 40

static const char *isa;

static void check(int holds, const char *what, int dim, double error)
{
    if (holds) return;
    fprintf(stderr, "%s: %s: dim %d: error %g\n", isa, what, dim, error);
    exit(1);
}

static void check_quantize(int dim)
{
    float x[MOST], scale;
    int8_t n[MOST + 1];
    for (int turn = 0; turn < 4; turn++) {
        float top = 0;
        for (int d = 0; d < dim; d++) {
            x[d] = (float)ldexp(uniform(), turn * 20);
            if (fabsf(x[d]) > top) top = fabsf(x[d]);
        }
        n[dim] = 99;
        check(rv_tiles()->quantize(x, dim, n, &scale) == 1, "finite", dim, 0);
        check(scale == top / 127, "scale", dim, scale - top / 127);
        check(n[dim] == 99, "behind the row", dim, n[dim]);
        for (int d = 0; d < dim; d++) {
            const double want = nearbyint((double)x[d] / (double)scale);
            check(n[d] == want, "whole number", dim, n[d] - want);
        }
    }
    for (int d = 0; d < dim; d++) x[d] = d & 1 ? -0.0f : 0.0f;
    check(rv_tiles()->quantize(x, dim, n, &scale) == 1 && scale == 0, "zeros", dim, scale);
    for (int d = 0; d < dim; d++) check(n[d] == 0, "zero", dim, n[d]);
    x[dim / 2] = dim & 1 ? NAN : -INFINITY;
    check(rv_tiles()->quantize(x, dim, n, &scale) == 0, "not finite", dim, 0);
    for (int d = 0; d < dim; d++) x[d] = (float)uniform();
    check(!rv_tiles()->any_between(x, dim, 0x40000000u, 0x7f800000u), "none", dim, 0);
    x[dim - 1] = -2;
    check(rv_tiles()->any_between(x, dim, 0x40000000u, 0x7f800000u), "one", dim, 0);
    x[dim - 1] = INFINITY;
    check(!rv_tiles()->any_between(x, dim, 0x40000000u, 0x7f800000u), "infinity", dim, 0);
}

static void check_tiles(int keys, int dim)
{
    const rv_decode_tiles *t = rv_tiles()->decode[RV_I8];
    const rv_softmax_tiles *wide = rv_tiles()->softmax[RV_I8];
    enum { LDS = 48, ROOM = MOST + 16 };
    static float q[HEADS * GROUP * ROOM], s[HEADS * GROUP * LDS], o[HEADS * GROUP * ROOM];
    static float factors[KEYS], tile[KEYS * MOST];
    static int8_t k[KEYS * HEADS * MOST + 64];
    const int ldq = (dim + t->lanes - 1) / t->lanes * t->lanes, ldk = HEADS * dim;
    memset(q, 0, sizeof q), memset(o, 0, sizeof o);
    for (int i = 0; i < keys * ldk; i++) k[i] = (int8_t)lrint(254 * uniform());
    for (int j = 0; j < keys; j++) factors[j] = (float)uniform();
    for (int r = 0; r < HEADS * GROUP; r++)
        for (int d = 0; d < dim; d++) q[r * ldq + d] = (float)uniform();

    wide->load_keys(k, ldk, keys, dim, tile);
    for (int j = 0; j < keys; j++)
        for (int d = 0; d < dim; d++)
            check(tile[j * dim + d] == k[j * ldk + d], "widening", dim, tile[j * dim + d]);
    wide->scale_rows(tile, keys, dim, factors);
    for (int j = 0; j < keys; j++)
        for (int d = 0; d < dim; d++)
            check(tile[j * dim + d] == factors[j] * k[j * ldk + d], "scaling", dim, j);

    t->scores(q, ldq, k, ldk, dim, keys, HEADS, GROUP, dim, s, LDS);
    for (int r = 0; r < HEADS * GROUP; r++) {
        for (int j = 0; j < keys; j++) {
            double sum = 0;
            for (int d = 0; d < dim; d++)
                sum += (double)q[r * ldq + d] * k[j * ldk + r / GROUP * dim + d];
            check(fabs(s[r * LDS + j] - sum) <= 1e-3, "scores", dim, s[r * LDS + j] - sum);
            s[r * LDS + j] = (float)uniform();
        }
        float before[KEYS];
        memcpy(before, s + r * LDS, sizeof before);
        t->multiply(s + r * LDS, keys, factors);
        for (int j = 0; j < keys; j++)
            check(s[r * LDS + j] == before[j] * factors[j], "factors", dim, j);
    }

    t->accumulate(s, NULL, LDS, k, ldk, dim, keys, HEADS, GROUP, dim, o, ldq);
    for (int r = 0; r < HEADS * GROUP; r++)
        for (int d = 0; d < dim; d++) {
            double sum = 0;
            for (int j = 0; j < keys; j++)
                sum += (double)s[r * LDS + j] * k[j * ldk + r / GROUP * dim + d];
            check(fabs(o[r * ldq + d] - sum) <= 1e-3, "sums", dim, o[r * ldq + d] - sum);
        }
    check(t->all_finite(k, ldk, keys, dim), "finite bytes", dim, 0);
}

int main(int argc, char **argv)
{
    const int step = argc > 1 && strcmp(argv[1], "quick") == 0 ? 7 : 1;
    for (int i = 0; i < rv_isa_count(); i++) {
        isa = rv_isa_name(i);
        check(rv_use_isa(isa) == 0, "selection", 0, 0);
        seed = 1;
        for (int dim = 1; dim <= 140; dim += step) {
            check_quantize(dim);
            for (int keys = 1; keys <= KEYS; keys += 13) check_tiles(keys, dim);
        }
        printf("%s: ok\n", isa);
    }
    return 0;
}
