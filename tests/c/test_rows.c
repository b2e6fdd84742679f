/* The row tiles against plain double loops, on every instruction set of this machine; built
 * and run as test_tiles.c is. Rows end where their memory ends, for sanitizers to see.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#define ROWS 37
#define TILE 64

static const char *isa;

static void check(const char *what, int dtype, int d, double actual, double expected)
{
    const double tolerance = dtype == RV_F32 ? 2e-6 : 1e-13;
    if (fabs(actual - expected) <= tolerance * (1 + fabs(expected))) return;
    fprintf(stderr, "%s: %s: dtype %d, d %d: %.17g instead of %.17g\n", isa, what, dtype, d,
            actual, expected);
    exit(1);
}

static void *rows_of(const rv_row_tiles *t, int n, int d, int dtype)
{
    void *x = malloc((size_t)n * d * t->real);
    for (ptrdiff_t i = 0; i < (ptrdiff_t)n * d; i++) put(x, i, dtype, 4 * uniform());
    return x;
}

static const char *row(const rv_row_tiles *t, const void *x, int i, int d)
{
    return (const char *)x + (size_t)i * d * t->real;
}

static void check_rows(const rv_row_tiles *t, int dtype, int d)
{
    void *x = rows_of(t, 2, d, dtype), *out = malloc((size_t)d * t->real);
    const void *y = row(t, x, 1, d);
    double xx = 0, yy = 0, xy = 0, gap = 0, total = 0, peak = -INFINITY, sums[3];
    for (int j = 0; j < d; j++) {
        const double a = get(x, j, dtype), b = get(y, j, dtype);
        xx += a * a, yy += b * b, xy += a * b, gap += (a - b) * (a - b);
        if (a > peak) peak = a;
    }
    check("squares", dtype, d, t->squares(x, d, 1), xx);
    check("scaled squares", dtype, d, t->squares(x, d, 0.5), xx / 4);
    for (int scaled = 0; scaled < 2; scaled++) {
        const double f = scaled ? 0.5 : 1;
        t->products(x, y, d, f, 1, sums);
        check("products", dtype, d, sums[0], f * f * xx);
        check("products", dtype, d, sums[1], yy);
        check("products", dtype, d, sums[2], f * xy);
        check("distance", dtype, d, t->distance(x, y, d, f), f * f * gap);
    }
    t->divide(x, d, 0.5, 3, out);
    for (int j = 0; j < d; j++)
        check("divide", dtype, d, get(out, j, dtype), get(x, j, dtype) / 6);

    const double temperatures[] = {0.7, 1e-35, 1e35};
    for (int k = 0; k < 3; k++) {
        total = 0;
        for (int j = 0; j < d; j++) total += exp((get(x, j, dtype) - peak) / temperatures[k]);
        t->softmax(x, d, temperatures[k], out);
        for (int j = 0; j < d; j++)
            check("softmax", dtype, d, get(out, j, dtype),
                  exp((get(x, j, dtype) - peak) / temperatures[k]) / total);
    }
    for (int j = 0; j < d; j++) put(x, j, dtype, -INFINITY);
    t->softmax(x, d, 1, out);
    for (int j = 0; j < d; j++) check("softmax of nothing", dtype, d, get(out, j, dtype), 0);
    put(x, d - 1, dtype, NAN);
    t->softmax(x, d, 1, out);
    for (int j = 0; j < d; j++)
        check("softmax of NaN", dtype, d, !isnan(get(out, j, dtype)), 0);
    free(x), free(out);
}

static void check_columns(const rv_row_tiles *t, int dtype, int d)
{
    void *x = rows_of(t, ROWS, d, dtype);
    const size_t room = (size_t)(d + t->panel - 1) / t->panel * t->panel;
    double *center = calloc(3 * room, sizeof(double)), *sums = center + room;
    double *squares = sums + room;
    for (int j = 0; j < d; j++) center[j] = get(x, j, dtype), sums[j] = 1, squares[j] = 1;
    t->column_sums(x, ROWS, d, center, sums);
    t->column_squares(x, ROWS, d, center, squares);
    for (int j = 0; j < d; j++) {
        double sum = 1, square = 1;
        for (int i = 0; i < ROWS; i++) {
            const double y = get(row(t, x, i, d), j, dtype) - center[j];
            sum += y, square += y * y;
        }
        check("column sums", dtype, d, sums[j], sum);
        check("column squares", dtype, d, squares[j], square);
    }
    const double before = get(x, d - 1, dtype) + 1;
    center[d - 1] -= 1;
    t->standardize(x, d, center, squares, x);
    check("standardize", dtype, d, get(x, d - 1, dtype),
          (before - 1 - center[d - 1]) * squares[d - 1]);
    free(x), free(center);
}

static void check_distances(const rv_row_tiles *t, int dtype, int d)
{
    void *x = rows_of(t, ROWS, d, dtype), *out = malloc((size_t)ROWS * ROWS * t->real);
    const int panels = (ROWS + t->panel - 1) / t->panel;
    const size_t size = (size_t)t->panel * d * t->real;
    char *packed = malloc(panels * size);
    int outside = 0;
    for (int i = 0; i < panels; i++)
        t->pack_panel(row(t, x, i * t->panel, d), ROWS - i * t->panel, d, packed + i * size);
    for (int i = 0; i < panels; i++)
        for (int j = i; j < panels; j++) {
            double *s = calloc((size_t)t->panel * TILE, sizeof(double));
            const int m = ROWS - i * t->panel, n = ROWS - j * t->panel;
            t->add_distances(packed + i * size, packed + j * size, d, s, TILE);
            outside |= t->store_distances(
                s, TILE, m < t->panel ? m : t->panel, n < t->panel ? n : t->panel,
                (char *)out + ((size_t)i * ROWS + j) * t->panel * t->real,
                (char *)out + ((size_t)j * ROWS + i) * t->panel * t->real, ROWS);
            free(s);
        }
    check("the diagonal is below the least square", dtype, d, outside != 0, 1);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < ROWS; j++) {
            double sum = 0;
            for (int k = 0; k < d; k++) {
                const double a = get(row(t, x, i, d), k, dtype);
                const double y = a - get(row(t, x, j, d), k, dtype);
                sum += y * y;
            }
            check("distances", dtype, d, get(out, i * ROWS + j, dtype), sqrt(sum));
        }
    free(x), free(out), free(packed);
}

int main(void)
{
    const int sizes[] = {1, 7, 15, 16, 17, 31, 32, 33, 97, 150};
    for (int i = 0; i < rv_isa_count(); i++) {
        isa = rv_isa_name(i);
        rv_use_isa(isa);
        for (int dtype = RV_F32; dtype <= RV_F64; dtype++)
            for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
                const rv_row_tiles *t = rv_tiles()->rows[dtype];
                check_rows(t, dtype, sizes[k]);
                check_columns(t, dtype, sizes[k]);
                check_distances(t, dtype, sizes[k]);
            }
        printf("%s: ok\n", isa);
    }
    return 0;
}
