/* Tiles that touch the caller's memory in one storage type: rows to lanes and back.
 *
 * The including file sets ITEM (the stored type), S(name) (the function's own name),
 * LOAD(p), LOAD_N(p, n), STORE(p, x), STORE_N(p, x, n), and REAL, RT, R, LANES as
 * softmax.inc.h has them; WIDENED where ITEM is not REAL. Without STORE the type is one that
 * keys and values alone may have, and holds finite numbers.
 */

#ifdef WIDENED
/* A tile of stored rows becomes a tile of reals. */
static void S(load_tile)(const void *src_, ptrdiff_t ld, int rows, ptrdiff_t dim, void *dst_)
{
    const ITEM *src = src_;
    REAL *dst = dst_;
    for (int j = 0; j < rows; j++, src += ld, dst += dim) {
        ptrdiff_t d = 0;
        for (; d + LANES <= dim; d += LANES) R(store)(dst + d, LOAD(src + d));
        if (d < dim) R(store_n)(dst + d, LOAD_N(src + d, (int)(dim - d)), (int)(dim - d));
    }
}
#endif

#include "decode.inc.h"

#ifdef STORE

static void S(pack)(const void *const *rows, int cols, ptrdiff_t dim, double scale, void *qt_)
{
    REAL *qt = qt_;
    const RT factor = R(set1)((REAL)scale);
    for (int c = 0; c < cols; c += LANES)
        for (ptrdiff_t d = 0; d < dim; d += LANES) {
            RT r[LANES];
            const int n = dim - d < LANES ? (int)(dim - d) : LANES;
            if (n == LANES)
                RV_UNROLL for (int i = 0; i < LANES; i++)
                    r[i] = LOAD((const ITEM *)rows[c + i] + d);
            else
                RV_UNROLL for (int i = 0; i < LANES; i++)
                    r[i] = LOAD_N((const ITEM *)rows[c + i] + d, n);
            R(transpose)(r);
            if (n == LANES)
                RV_UNROLL for (int i = 0; i < LANES; i++)
                    R(store)(qt + (d + i) * cols + c, R(mul)(factor, r[i]));
            else
                for (int i = 0; i < n; i++)
                    R(store)(qt + (d + i) * cols + c, R(mul)(factor, r[i]));
        }
}

static void S(finish)(const void *o_, const void *m_, const void *l_, int cols, int rows,
                      ptrdiff_t dv, void *const *out, void *const *lse)
{
    const REAL *o = o_, *m = m_, *l = l_;
    for (int c = 0; c < rows; c += LANES) {
        const RT sum = R(load)(l + c);
        const RT inverse = R(select)(R(eq)(sum, R(set1)(0)), R(set1)(0),
                                     R(div)(R(set1)(1), sum));
        const int lanes = rows - c < LANES ? rows - c : LANES;
        for (ptrdiff_t d = 0; d < dv; d += LANES) {
            RT r[LANES];
            const int n = dv - d < LANES ? (int)(dv - d) : LANES;
            for (int i = 0; i < LANES; i++)
                r[i] = i < n ? R(mul)(inverse, R(load)(o + (d + i) * cols + c)) : R(set1)(0);
            R(transpose)(r);
            for (int i = 0; i < lanes; i++) {
                ITEM *at = (ITEM *)out[c + i] + d;
                if (n == LANES) STORE(at, r[i]);
                else STORE_N(at, r[i], n);
            }
        }
    }
    if (lse)
        for (int i = 0; i < rows; i++)
            *(REAL *)lse[i] = T(natural_lse)(m[i], l[i]);
}

static void S(load_query)(const void *row_, ptrdiff_t dim, double scale, void *dst_)
{
    const ITEM *row = row_;
    REAL *dst = dst_;
    const RT factor = R(set1)((REAL)scale);
    for (ptrdiff_t d = 0; d < dim; d += LANES) {
        RT x = dim - d < LANES ? LOAD_N(row + d, (int)(dim - d)) : LOAD(row + d);
        R(store)(dst + d, R(mul)(factor, x));
    }
}

static int S(values_finite)(const void *v_, ptrdiff_t ldv, int nk, ptrdiff_t dv)
{
    const ITEM *v = v_;
    const RT zero = R(set1)(0);
    RT nan = zero; /* x * 0 is NaN for NaN and for infinity */
    for (int j = 0; j < nk; j++) {
        ptrdiff_t d = 0;
        for (; d + LANES <= dv; d += LANES) nan = R(fma)(LOAD(v + j * ldv + d), zero, nan);
        if (d < dv) nan = R(fma)(LOAD_N(v + j * ldv + d, (int)(dv - d)), zero, nan);
    }
    return R(sum)(nan) == 0;
}

static void S(decode_finish)(const void *m, const void *l, const void *o_, ptrdiff_t dv,
                             void *out_, void *lse)
{
    const REAL *o = o_, sum = *(const REAL *)l, inverse = sum == 0 ? 0 : 1 / sum;
    ITEM *out = out_;
    for (ptrdiff_t d = 0; d < dv; d += LANES) {
        RT x = R(mul)(R(load)(o + d), R(set1)(inverse));
        if (dv - d < LANES) STORE_N(out + d, x, (int)(dv - d));
        else STORE(out + d, x);
    }
    if (lse) *(REAL *)lse = T(natural_lse)(*(const REAL *)m, sum);
}

#include "rotary.inc.h"
#include "ball_storage.inc.h"
#include "backward_storage.inc.h"
#endif

#undef ITEM
#undef S
#undef LOAD
#undef LOAD_N
#undef STORE
#undef STORE_N
