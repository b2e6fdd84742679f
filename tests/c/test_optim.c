/* The steps of optimisers against plain double loops, on every instruction set of this machine;
 * built and run as test_tiles.c is. Arrays end where their memory ends, for sanitizers to see,
 * and begin at any place in a vector.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "numbers.h"

static const char *isa;

static void check(const char *what, int dtype, int n, double actual, double expected)
{
    const double tolerance = dtype == RV_F32 ? 4e-6 : 1e-13;
    if (fabs(actual - expected) <= tolerance * (1 + fabs(expected))) return;
    fprintf(stderr, "%s: %s: dtype %d, n %d: %.17g instead of %.17g\n", isa, what, dtype, n,
            actual, expected);
    exit(1);
}

static void check_adam(const rv_optim_tiles *t, int dtype, int n, int shift, int peaks)
{
    const rv_adam o = {.rate = 0.3, .decay = peaks ? 0.1 : 0, .shrink = 0.9, .beta1 = 0.8,
                       .beta2 = 0.95, .root = 1.7, .epsilon = 1e-3};
    double before[5][256];
    void *memory[5];
    char *x[5];
    for (int a = 0; a < 5; a++) {
        memory[a] = malloc((size_t)(n + shift) * t->real);
        x[a] = (char *)memory[a] + (size_t)shift * t->real;
        for (int i = 0; i < n; i++) {
            put(x[a], i, dtype, a < 3 ? uniform() : uniform() + 0.6);
            before[a][i] = get(x[a], i, dtype);
        }
    }
    t->adam(x[0], x[1], x[2], x[3], peaks ? x[4] : NULL, n, &o);
    for (int i = 0; i < n; i++) {
        const double d = before[1][i] + o.decay * before[0][i];
        const double m = 0.8 * before[2][i] + 0.2 * d;
        const double v = 0.95 * before[3][i] + 0.05 * d * d;
        const double w = peaks && before[4][i] > v ? before[4][i] : v;
        const double p = 0.9 * before[0][i] - 0.3 * m / (1.7 * sqrt(w) + 1e-3);
        check("adam, p", dtype, n, get(x[0], i, dtype), p);
        check("adam, g", dtype, n, get(x[1], i, dtype), before[1][i]);
        check("adam, m", dtype, n, get(x[2], i, dtype), m);
        check("adam, v", dtype, n, get(x[3], i, dtype), v);
        check("adam, peak", dtype, n, get(x[4], i, dtype), peaks ? w : before[4][i]);
    }
    for (int a = 0; a < 5; a++) free(memory[a]);
}

static void check_sgd(const rv_optim_tiles *t, int dtype, int n, int shift, int form)
{
    const int momentum = form > 0, nesterov = form > 1;
    const rv_sgd o = {.rate = 0.3, .decay = form & 1 ? 0 : 0.2, .keep = 0.9, .share = 0.4,
                      .momentum = 0.9, .nesterov = nesterov};
    double before[3][256];
    void *memory[3];
    char *x[3];
    for (int a = 0; a < 3; a++) {
        memory[a] = malloc((size_t)(n + shift) * t->real);
        x[a] = (char *)memory[a] + (size_t)shift * t->real;
        for (int i = 0; i < n; i++) {
            put(x[a], i, dtype, uniform());
            before[a][i] = get(x[a], i, dtype);
        }
    }
    t->sgd(x[0], x[1], momentum ? x[2] : NULL, n, &o);
    for (int i = 0; i < n; i++) {
        const double d = before[1][i] + o.decay * before[0][i];
        const double b = momentum ? 0.9 * before[2][i] + 0.4 * d : before[2][i];
        const double step = nesterov ? d + 0.9 * b : momentum ? b : d;
        check("sgd, p", dtype, n, get(x[0], i, dtype), before[0][i] - 0.3 * step);
        check("sgd, b", dtype, n, get(x[2], i, dtype), b);
    }
    for (int a = 0; a < 3; a++) free(memory[a]);
}

int main(void)
{
    const int sizes[] = {1, 3, 7, 15, 16, 17, 31, 32, 33, 97, 150};
    for (int i = 0; i < rv_isa_count(); i++) {
        isa = rv_isa_name(i);
        rv_use_isa(isa);
        for (int dtype = RV_F32; dtype <= RV_F64; dtype++)
            for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
                for (int shift = 0; shift < 6; shift++) {
                    const rv_optim_tiles *t = rv_tiles()->optim[dtype];
                    for (int peaks = 0; peaks < 2; peaks++)
                        check_adam(t, dtype, sizes[k], shift, peaks);
                    for (int form = 0; form < 4; form++)
                        check_sgd(t, dtype, sizes[k], shift, form);
                }
        printf("%s: ok\n", isa);
    }
    return 0;
}
