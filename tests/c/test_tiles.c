/* The C tiles against a naive double reference, on every instruction set of this machine.
 *
 * Built from the files of ruvector/_kernels/simd alone, so that it runs where no Python does:
 * for another processor under an emulator, with sanitizers, or with an older CPU model.
 * Prints a line an instruction set; exits 1 at the first mismatch. `list` prints the names of
 * the instruction sets and stops, `quick` takes one problem in 97, for slow emulators.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#define MOST_COLS 64
#define MOST_DIM 160

static const char *isa;
static int every = 1;

static void fail(const char *what, int dtype, int rows, int keys, int dim, double error)
{
    fprintf(stderr, "%s: %s: dtype %d, %d rows, %d keys, dim %d: error %g\n", isa, what, dtype,
            rows, keys, dim, error);
    exit(1);
}

/* ---- storage types, by their definitions ------------------------------------------ */

static double half_value(uint16_t h)
{
    const int exponent = (h >> 10) & 31, fraction = h & 1023;
    double x = exponent == 31 ? (fraction ? NAN : INFINITY)
             : exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return h & 0x8000 ? -x : x;
}

static double widen_half(uint16_t h)
{
    static double values[65536];
    static int filled;
    for (; filled < 65536; filled++) values[filled] = half_value((uint16_t)filled);
    return values[h];
}

static double widen_bfloat(uint16_t b)
{
    uint32_t bits = (uint32_t)b << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The stored number nearest to x, halves to even, by search over all bit patterns. */
static uint16_t nearest(double x, double (*widen)(uint16_t))
{
    int low = 0, high = widen == widen_half ? 0x7c00 : 0x7f80;
    const double a = fabs(x);
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (widen((uint16_t)middle) <= a) low = middle;
        else high = middle;
    }
    /* What lies beyond the last finite number by half a step or more is infinite. */
    const double below = widen((uint16_t)low);
    const double above = isinf(widen((uint16_t)high))
        ? below + (below - widen((uint16_t)(low - 1))) : widen((uint16_t)high);
    const double middle = below + (above - below) / 2;
    const int up = a > middle || (a == middle && (low & 1));
    return (uint16_t)((up ? high : low) | (x < 0 || (x == 0 && signbit(x)) ? 0x8000 : 0));
}

static double read_item(const void *array, size_t i, int dtype)
{
    switch (dtype) {
    case RV_F32: return ((const float *)array)[i];
    case RV_F64: return ((const double *)array)[i];
    case RV_F16: return widen_half(((const uint16_t *)array)[i]);
    default: return widen_bfloat(((const uint16_t *)array)[i]);
    }
}

static void write_item(void *array, size_t i, int dtype, double x)
{
    switch (dtype) {
    case RV_F32: ((float *)array)[i] = (float)x; break;
    case RV_F64: ((double *)array)[i] = x; break;
    case RV_F16: ((uint16_t *)array)[i] = nearest(x, widen_half); break;
    default: ((uint16_t *)array)[i] = nearest(x, widen_bfloat); break;
    }
}

static double real_at(const void *array, size_t i, int real)
{
    return real == 8 ? ((const double *)array)[i] : ((const float *)array)[i];
}

static void set_real(void *array, size_t i, int real, double x)
{
    if (real == 8) ((double *)array)[i] = x;
    else ((float *)array)[i] = (float)x;
}

static void *room(size_t bytes)
{
    void *p = calloc(1, bytes + 64);
    if (!p) abort();
    return p;
}

static void *random_items(size_t n, int dtype, int item)
{
    void *p = room(n * (size_t)item);
    for (size_t i = 0; i < n; i++) write_item(p, i, dtype, uniform());
    return p;
}

/* ---- one problem, three ways ------------------------------------------------------ */

typedef struct problem {
    int dtype, rows, keys, dim, dim_v, lower, upper;
    double scale, softcap, slope;
    void *q, *k, *v;
    uint8_t *mask;   /* [rows][keys], or null */
    void *bias;      /* [rows][keys] reals, or null */
    int real, item;
} problem;

static void reference(const problem *p, int row, double *out, double *lse)
{
    double *s = room((size_t)p->keys * sizeof(double)), top = -INFINITY, sum = 0;
    for (int j = 0; j < p->keys; j++) {
        double x = 0;
        for (int d = 0; d < p->dim; d++)
            x += read_item(p->q, (size_t)row * p->dim + d, p->dtype) *
                 read_item(p->k, (size_t)j * p->dim + d, p->dtype);
        x *= p->scale;
        if (p->softcap != 0) x = p->softcap * tanh(x / p->softcap);
        x -= p->slope * fabs((double)row - j);
        if (p->bias) x += real_at(p->bias, (size_t)row * p->keys + j, p->real);
        if (p->mask && !p->mask[(size_t)row * p->keys + j]) x = -INFINITY;
        if (!(j >= p->lower && j < p->upper)) x = -INFINITY;
        s[j] = x;
        if (x > top) top = x;
    }
    for (int d = 0; d < p->dim_v; d++) out[d] = 0;
    for (int j = 0; j < p->keys; j++) {
        if (s[j] == -INFINITY) continue;
        const double e = exp(s[j] - top);
        sum += e;
        for (int d = 0; d < p->dim_v; d++)
            out[d] += e * read_item(p->v, (size_t)j * p->dim_v + d, p->dtype);
    }
    for (int d = 0; d < p->dim_v; d++) out[d] /= sum != 0 ? sum : 1;
    *lse = sum != 0 ? top + log(sum) : -INFINITY;
    free(s);
}

static const double LOG2E = 1.4426950408889634;

static void by_prefill(const problem *p, void *out, void *lse)
{
    const rv_softmax_tiles *t = rv_tiles()->softmax[p->dtype];
    const int cols = p->rows <= t->lanes ? t->lanes : t->cols;
    const size_t real = (size_t)t->real, item = (size_t)t->item;
    void *qt = room((size_t)(p->dim + 1) * cols * real), *o = room((size_t)p->dim_v * cols * real);
    void *s = room((size_t)t->key_tile * cols * real), *raw = room((size_t)t->key_tile * cols * real);
    void *kt = room((size_t)t->key_tile * p->dim * real);
    void *vt = room((size_t)t->key_tile * p->dim_v * real);
    void *m = room(cols * real), *l = room(cols * real), *a = room(cols * real);
    void *b = room(cols * real), *c = room(cols * real);
    const void *rows[MOST_COLS];
    void *outs[MOST_COLS], *lses[MOST_COLS];
    for (int i = 0; i < cols; i++) {
        const int r = i < p->rows ? i : p->rows - 1;
        rows[i] = (const char *)p->q + (size_t)r * p->dim * item;
        outs[i] = (char *)out + (size_t)r * p->dim_v * item;
        lses[i] = (char *)lse + (size_t)r * real;
        set_real(m, i, t->real, t->real == 8 ? -1.7e308 : -3.4e38);
    }
    t->pack(rows, cols, p->dim, p->scale * LOG2E, qt);
    for (int j = 0; j < p->keys; j += t->key_tile) {
        const int nk = p->keys - j < t->key_tile ? p->keys - j : t->key_tile;
        const void *k = (const char *)p->k + (size_t)j * p->dim * item;
        const void *v = (const char *)p->v + (size_t)j * p->dim_v * item;
        const int finite = t->all_finite(v, p->dim_v, nk, p->dim_v);
        if (t->load_keys) t->load_keys(k, p->dim, nk, p->dim, kt), k = kt;
        if (t->load_values) t->load_values(v, p->dim_v, nk, p->dim_v, vt), v = vt;
        t->scores(qt, cols, k, p->dim, nk, p->dim, s);
        if (p->softcap != 0) t->softcap(s, nk, cols, p->softcap * LOG2E);
        if (p->slope != 0) {
            for (int i = 0; i < cols; i++) {
                set_real(a, i, t->real, p->slope * LOG2E);
                set_real(b, i, t->real, (i < p->rows ? i : p->rows - 1) - j);
            }
            t->alibi(s, nk, cols, a, b);
        }
        for (int i = 0; i < cols; i++) {
            const size_t at = (size_t)(i < p->rows ? i : p->rows - 1) * p->keys + j;
            rows[i] = p->bias ? (const char *)p->bias + at * real : NULL;
        }
        if (p->bias) t->add_bias(s, nk, cols, rows, 1, LOG2E);
        for (int i = 0; p->mask && i < cols; i++)
            rows[i] = p->mask + (size_t)(i < p->rows ? i : p->rows - 1) * p->keys + j;
        if (p->mask) t->hide_mask(s, nk, cols, rows, 1);
        for (int i = 0; i < cols; i++) {
            set_real(a, i, t->real, p->lower - j);
            set_real(b, i, t->real, p->upper - j);
            set_real(c, i, t->real, 0);
        }
        t->hide_outside(s, nk, cols, a, b, c);
        memcpy(raw, s, (size_t)nk * cols * real);
        t->update(s, nk, cols, m, l, o, p->dim_v);
        if (finite) t->accumulate(s, cols, v, p->dim_v, nk, p->dim_v, o);
        else t->accumulate_visible(s, raw, cols, v, p->dim_v, nk, p->dim_v, o);
    }
    t->finish(o, m, l, cols, p->rows, p->dim_v, outs, lses);
    free(qt), free(o), free(s), free(raw), free(kt), free(vt);
    free(m), free(l), free(a), free(b), free(c);
}

/* All keys in two chunks, merged. */
static void by_decode(const problem *p, void *out, void *lse)
{
    const rv_decode_tiles *t = rv_tiles()->decode[p->dtype];
    const size_t real = (size_t)t->real, item = (size_t)t->item;
    const int ldq = (p->dim + t->lanes - 1) / t->lanes * t->lanes;
    const int ldo = (p->dim_v + t->lanes - 1) / t->lanes * t->lanes;
    void *q = room((size_t)ldq * real), *s = room((size_t)t->key_tile * real);
    void *raw = room((size_t)t->key_tile * real), *o[2], *m = room(2 * real), *l = room(2 * real);
    o[0] = room((size_t)ldo * real), o[1] = room((size_t)ldo * real);
    for (int r = 0; r < p->rows; r++) {
        t->load_query((const char *)p->q + (size_t)r * p->dim * item, p->dim, p->scale * LOG2E, q);
        for (int part = 0; part < 2; part++) {
            const int begin = part * (p->keys / 2), end = part ? p->keys : p->keys / 2;
            void *mp = (char *)m + part * real, *lp = (char *)l + part * real;
            set_real(mp, 0, t->real, t->real == 8 ? -1.7e308 : -3.4e38);
            set_real(lp, 0, t->real, 0);
            memset(o[part], 0, (size_t)ldo * real);
            for (int j = begin; j < end; j += t->key_tile) {
                const int nk = end - j < t->key_tile ? end - j : t->key_tile;
                const void *v = (const char *)p->v + (size_t)j * p->dim_v * item;
                const size_t at = (size_t)r * p->keys + j;
                t->scores(q, ldq, (const char *)p->k + (size_t)j * p->dim * item, p->dim, 0, nk,
                          1, 1, p->dim, s, t->key_tile);
                if (p->softcap != 0) t->softcap(s, nk, p->softcap * LOG2E);
                if (p->slope != 0) t->alibi(s, nk, p->slope * LOG2E, r - j);
                if (p->bias) t->add_bias(s, nk, (char *)p->bias + at * real, 1, LOG2E);
                if (p->mask) t->hide_mask(s, nk, p->mask + at, 1);
                t->hide_outside(s, nk, p->lower - j, p->upper - j, 0);
                memcpy(raw, s, (size_t)t->key_tile * real);
                t->update(s, t->key_tile, 1, nk, mp, lp, o[part], ldo);
                t->accumulate(s, t->all_finite(v, p->dim_v, nk, p->dim_v) ? NULL : raw,
                              t->key_tile, v, p->dim_v, 0, nk, 1, 1, p->dim_v, o[part], ldo);
            }
        }
        t->merge(m, l, o[0], (char *)m + real, (char *)l + real, o[1], p->dim_v);
        t->finish(m, l, o[0], p->dim_v, (char *)out + (size_t)r * p->dim_v * item,
                  (char *)lse + (size_t)r * real);
    }
    free(q), free(s), free(raw), free(o[0]), free(o[1]), free(m), free(l);
}

static void check_problem(const problem *p, const char *what)
{
    static const double tolerance[] = {5e-6, 1e-13, 1e-3, 8e-3};
    static const double lse_tolerance[] = {5e-6, 1e-13, 5e-6, 5e-6};
    double expected[MOST_DIM], expected_lse;
    for (int way = 0; way < 2; way++) {
        void *out = room((size_t)p->rows * p->dim_v * (size_t)p->item);
        void *lse = room((size_t)p->rows * (size_t)p->real);
        if (way == 0) by_prefill(p, out, lse);
        else by_decode(p, out, lse);
        for (int r = 0; r < p->rows; r++) {
            reference(p, r, expected, &expected_lse);
            for (int d = 0; d < p->dim_v; d++) {
                const double got = read_item(out, (size_t)r * p->dim_v + d, p->dtype);
                const double error = fabs(got - expected[d]);
                if (!(error <= tolerance[p->dtype]))
                    fail(way ? "decode" : what, p->dtype, p->rows, p->keys, p->dim, error);
            }
            const double got = real_at(lse, r, p->real);
            if (got != expected_lse && !(fabs(got - expected_lse) <= lse_tolerance[p->dtype]))
                fail(way ? "decode L" : "prefill L", p->dtype, p->rows, p->keys, p->dim,
                     fabs(got - expected_lse));
        }
        free(out), free(lse);
    }
}

static void check_attention(void)
{
    static const int all_rows[] = {1, 7, 16, 17, 32}, all_keys[] = {1, 5, 12, 17, 96, 203};
    static const int dims[] = {1, 7, 15, 16, 17, 33, 64, 130};
    for (int dtype = 0; dtype < RV_NUM_DTYPES; dtype++)
        for (int i = 0; i < 5; i++)
            for (int j = 0; j < 6; j++)
                for (int d = 0; d < 8; d++) {
                    const rv_softmax_tiles *t = rv_tiles()->softmax[dtype];
                    if (all_rows[i] > t->cols || (i * 48 + j * 8 + d) % every) continue;
                    problem p = {.dtype = dtype, .rows = all_rows[i], .keys = all_keys[j],
                                 .dim = dims[d], .dim_v = dims[(d + 3) % 8],
                                 .upper = all_keys[j], .scale = 2.5,
                                 .real = t->real, .item = t->item};
                    const size_t cells = (size_t)p.rows * p.keys;
                    p.q = random_items((size_t)p.rows * p.dim, dtype, p.item);
                    p.k = random_items((size_t)p.keys * p.dim, dtype, p.item);
                    p.v = random_items((size_t)p.keys * p.dim_v, dtype, p.item);
                    check_problem(&p, "plain");
                    p.softcap = 1.5;
                    p.slope = 0.25;
                    p.bias = random_items(cells, p.real == 8 ? RV_F64 : RV_F32, p.real);
                    set_real(p.bias, cells / 2, p.real, -INFINITY);
                    check_problem(&p, "softcap, ALiBi, bias");
                    p.mask = room(cells);
                    for (size_t c = 0; c < cells; c++) p.mask[c] = uniform() > 0;
                    /* What hides behind the mask must not show. */
                    const int poisoned = p.keys / 2;
                    for (int r = 0; r < p.rows; r++) p.mask[(size_t)r * p.keys + poisoned] = 0;
                    write_item(p.v, (size_t)poisoned * p.dim_v, dtype, 0);
                    if (dtype == RV_F32) ((float *)p.v)[poisoned * p.dim_v] = NAN;
                    if (dtype == RV_F64) ((double *)p.v)[poisoned * p.dim_v] = INFINITY;
                    if (dtype == RV_F16) ((uint16_t *)p.v)[poisoned * p.dim_v] = 0x7c00;
                    if (dtype == RV_BF16) ((uint16_t *)p.v)[poisoned * p.dim_v] = 0x7fc0;
                    p.lower = p.keys / 5;
                    p.upper = p.keys - p.keys / 7;
                    check_problem(&p, "mask and bounds");
                    free(p.q), free(p.k), free(p.v), free(p.bias), free(p.mask);
                }
}

/* ---- rotary positions ------------------------------------------------------------- */

#define HEADS 2
#define GROUP 3
#define PLACES 5

/* Entry d of a row of k, turned by a row of the table. */
static double turned(const void *k, size_t row, int dtype, const void *table, int place, int dim,
                     int neighbours, int real, int d)
{
    const int half = dim / 2, second = neighbours ? d & 1 : d >= half;
    const int x = neighbours ? d & ~1 : d % half, y = neighbours ? d | 1 : x + half;
    const double a = read_item(k, row * dim + x, dtype), b = read_item(k, row * dim + y, dtype);
    const double c = real_at(table, (size_t)place * dim + x, real);
    const double s = real_at(table, (size_t)place * dim + y, real);
    return second ? a * s + b * c : a * c - b * s;
}

static void check_turned(int dtype, int keys, int dim, int neighbours)
{
    const rv_rotary_tiles *t = rv_tiles()->rotary[dtype];
    const rv_decode_tiles *decode = rv_tiles()->decode[dtype];
    const int real = decode->real, item = decode->item, lanes = decode->lanes;
    const int ldq = (dim + lanes - 1) / lanes * lanes, lds = (keys + lanes - 1) / lanes * lanes;
    const double bound = real == 8 ? 1e-13 : 2e-5;
    void *k = random_items((size_t)keys * HEADS * dim, dtype, item);
    void *table = random_items((size_t)PLACES * dim, real == 8 ? RV_F64 : RV_F32, real);
    void *q = room((size_t)HEADS * GROUP * ldq * real);
    void *rows = room((size_t)keys * HEADS * dim * real);
    void *s = room((size_t)HEADS * GROUP * lds * real);
    int64_t *places = room((size_t)keys * sizeof(int64_t));
    for (int j = 0; j < keys; j++) places[j] = (j * 3 + 1) % PLACES;
    for (int r = 0; r < HEADS * GROUP; r++)
        for (int d = 0; d < dim; d++) set_real(q, (size_t)r * ldq + d, real, uniform());
    t->rotate(k, HEADS * dim, dim, keys, HEADS, dim, places, table, neighbours, rows);
    t->scores(q, ldq, k, HEADS * dim, dim, keys, HEADS, GROUP, dim, places, table, neighbours, s,
              lds);
    for (int j = 0; j < keys; j++)
        for (int r = 0; r < HEADS * GROUP; r++) {
            const size_t row = (size_t)j * HEADS + r / GROUP;
            double sum = 0;
            for (int d = 0; d < dim; d++) {
                const double x = turned(k, row, dtype, table, (int)places[j], dim, neighbours,
                                        real, d);
                const double error = real_at(rows, row * dim + d, real) - x;
                if (!(fabs(error) <= bound)) fail("turning", dtype, j, d, dim, error);
                sum += x * real_at(q, (size_t)r * ldq + d, real);
            }
            const double error = real_at(s, (size_t)r * lds + j, real) - sum;
            if (!(fabs(error) <= bound * 4)) fail("turned scores", dtype, r, j, dim, error);
        }
    free(k), free(table), free(q), free(rows), free(s), free(places);
}

static void check_rotary(void)
{
    static const int dims[] = {2, 4, 6, 10, 16, 30, 34, 64, 130};
    for (int dtype = 0; dtype < RV_NUM_DTYPES; dtype++)
        for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
            for (int keys = 1; keys < 40; keys += 6) {
                check_turned(dtype, keys, dims[i], 0);
                check_turned(dtype, keys, dims[i], 1);
            }
}

/* ---- conversions and functions ---------------------------------------------------- */

static void check_storage(void)
{
    const rv_decode_tiles *half = rv_tiles()->decode[RV_F16];
    const rv_decode_tiles *bfloat = rv_tiles()->decode[RV_BF16];
    float wide[64], one = 1, zero = 0;
    uint16_t row[64];
    for (int h = 0; h < 65536; h += 16 * every)
        for (int b = 0; b < 2; b++) {
            for (int i = 0; i < 16; i++) row[i] = (uint16_t)(h + i);
            (b ? bfloat : half)->load_query(row, 16, 1, wide);
            for (int i = 0; i < 16; i++) {
                const double x = b ? widen_bfloat(row[i]) : widen_half(row[i]);
                if (!(wide[i] == x || (isnan(wide[i]) && isnan(x))))
                    fail("widening", b ? RV_BF16 : RV_F16, h + i, 0, 0, wide[i] - x);
            }
        }
    for (int n = 0; n < 4096; n += every) {
        for (int i = 0; i < 16; i++) wide[i] = (float)ldexp(uniform(), (int)(60 * uniform()));
        wide[0] = (float)(ldexp(2 * (n % 2048) + 1, -25)); /* halfway between subnormals */
        wide[1] = (float)(65504 + n % 64);
        for (int b = 0; b < 2; b++) {
            (b ? bfloat : half)->finish(&zero, &one, wide, 16, row, NULL);
            for (int i = 0; i < 16; i++) {
                const uint16_t x = nearest(wide[i], b ? widen_bfloat : widen_half);
                if (row[i] != x) fail("narrowing", b ? RV_BF16 : RV_F16, row[i], x, i, wide[i]);
            }
        }
    }
}

static double check_exp2(void)
{
    double worst = 0;
    float x[64];
    double y[64];
    for (int n = 0; n < 4000; n += every) {
        float copy[64];
        for (int i = 0; i < 64; i++) copy[i] = x[i] = (float)(-126 * (n * 64 + i) / 256000.0);
        for (int i = 0; i < 64; i++) y[i] = -1022 * (n * 64 + i) / 256000.0;
        rv_tiles()->decode[RV_F32]->probabilities(x, 64, 0, 1, 1);
        for (int i = 0; i < 64; i++) {
            const double error = fabs(x[i] / exp2((double)copy[i]) - 1) / 5.96e-8;
            if (error > worst) worst = error;
        }
        double kept[64];
        memcpy(kept, y, sizeof y);
        rv_tiles()->decode[RV_F64]->probabilities(y, 64, 0, 1, 1);
        for (int i = 0; i < 64; i++)
            if (!(fabs(y[i] / exp2(kept[i]) - 1) <= 4 * 1.2e-16))
                fail("exp2 in double", RV_F64, n, i, 0, y[i] / exp2(kept[i]) - 1);
    }
    if (worst > 4) fail("exp2", RV_F32, 0, 0, 0, worst);
    return worst;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (strcmp(mode, "quick") == 0) every = 97;
    for (int i = 0; i < rv_isa_count(); i++) {
        isa = rv_isa_name(i);
        if (strcmp(mode, "list") == 0) {
            printf("%s\n", isa);
            continue;
        }
        if (rv_use_isa(isa) != 0) fail("selection", 0, 0, 0, 0, 0);
        seed = 1;
        check_storage();
        check_attention();
        check_rotary();
        printf("%s: ok, exp2 within %.2f half-ulps\n", isa, check_exp2());
    }
    return 0;
}
