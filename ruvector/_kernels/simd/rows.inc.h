/* Functions of single rows, and of columns over rows, in one type: the vector utilities.
 *
 * Sums are kept in double, four vectors of partial sums a row: float32 input neither
 * overflows nor underflows in them, and float64 input is multiplied by `scale` first, a
 * power of two that is 1 unless the caller found the sum out of range. The softmax computes
 * its exponentials in REAL. Every function but the softmax reads its rows once; `out` may be
 * the row itself.
 *
 * Beside REAL, RT, R, LANES and T of softmax.inc.h the including file sets WIDE_LOAD(p),
 * WIDE_LOAD_N(p, n), WIDE_STORE(p, x), WIDE_STORE_N(p, x, n), a vector of doubles from and to
 * REALs in memory, and LOW and HIGH, between which squared distances summed by
 * distances.inc.h have neither overflowed nor lost anything to underflow.
 */

/* Up to VD_LANES elements of a row that has `left` more, zeros behind. */
static RV_INLINE vd T(wide_load)(const REAL *p, ptrdiff_t left)
{
    return left < VD_LANES ? WIDE_LOAD_N(p, (int)left) : WIDE_LOAD(p);
}

static RV_INLINE void T(wide_store)(REAL *p, vd x, ptrdiff_t left)
{
    if (left < VD_LANES) WIDE_STORE_N(p, x, (int)left);
    else WIDE_STORE(p, x);
}

static RV_INLINE vd T(wide_scaled)(const REAL *p, ptrdiff_t left, vd scale, int scaled)
{
    const vd x = T(wide_load)(p, left);
    return scaled ? vd_mul(x, scale) : x;
}

static RV_INLINE double T(total)(const vd sum[4])
{
    return vd_sum(vd_add(vd_add(sum[0], sum[1]), vd_add(sum[2], sum[3])));
}

static RV_INLINE double T(squares)(const REAL *x, ptrdiff_t n, vd scale, int scaled)
{
    vd sum[4] = {vd_set1(0), vd_set1(0), vd_set1(0), vd_set1(0)};
    ptrdiff_t j = 0;
    for (; n - j >= 4 * VD_LANES; j += 4 * VD_LANES)
        RV_UNROLL for (int i = 0; i < 4; i++) {
            const vd a = T(wide_scaled)(x + j + i * VD_LANES, VD_LANES, scale, scaled);
            sum[i] = vd_fma(a, a, sum[i]);
        }
    for (; j < n; j += VD_LANES) {
        const vd a = T(wide_scaled)(x + j, n - j, scale, scaled);
        sum[0] = vd_fma(a, a, sum[0]);
    }
    return T(total)(sum);
}

static double T(row_squares)(const void *x, ptrdiff_t n, double scale)
{
    return scale == 1 ? T(squares)(x, n, vd_set1(1), 0) : T(squares)(x, n, vd_set1(scale), 1);
}

static RV_INLINE void T(products)(const REAL *a, const REAL *b, ptrdiff_t n, vd scale_a,
                                  vd scale_b, int scaled, double *sums)
{
    vd aa[4], bb[4], ab[4];
    ptrdiff_t j = 0;
    RV_UNROLL for (int i = 0; i < 4; i++) aa[i] = bb[i] = ab[i] = vd_set1(0);
    for (; n - j >= 4 * VD_LANES; j += 4 * VD_LANES)
        RV_UNROLL for (int i = 0; i < 4; i++) {
            const ptrdiff_t k = j + i * VD_LANES;
            const vd x = T(wide_scaled)(a + k, VD_LANES, scale_a, scaled);
            const vd y = T(wide_scaled)(b + k, VD_LANES, scale_b, scaled);
            aa[i] = vd_fma(x, x, aa[i]);
            bb[i] = vd_fma(y, y, bb[i]);
            ab[i] = vd_fma(x, y, ab[i]);
        }
    for (; j < n; j += VD_LANES) {
        const vd x = T(wide_scaled)(a + j, n - j, scale_a, scaled);
        const vd y = T(wide_scaled)(b + j, n - j, scale_b, scaled);
        aa[0] = vd_fma(x, x, aa[0]);
        bb[0] = vd_fma(y, y, bb[0]);
        ab[0] = vd_fma(x, y, ab[0]);
    }
    sums[0] = T(total)(aa);
    sums[1] = T(total)(bb);
    sums[2] = T(total)(ab);
}

static void T(row_products)(const void *a, const void *b, ptrdiff_t n, double scale_a,
                            double scale_b, double *sums)
{
    if (scale_a == 1 && scale_b == 1)
        T(products)(a, b, n, vd_set1(1), vd_set1(1), 0, sums);
    else
        T(products)(a, b, n, vd_set1(scale_a), vd_set1(scale_b), 1, sums);
}

static double T(row_distance)(const void *a_, const void *b_, ptrdiff_t n, double scale)
{
    const REAL *a = a_, *b = b_;
    const vd s = vd_set1(scale);
    vd sum[4] = {vd_set1(0), vd_set1(0), vd_set1(0), vd_set1(0)};
    ptrdiff_t j = 0;
    for (; n - j >= 4 * VD_LANES; j += 4 * VD_LANES)
        RV_UNROLL for (int i = 0; i < 4; i++) {
            const ptrdiff_t k = j + i * VD_LANES;
            const vd x = vd_mul(vd_sub(WIDE_LOAD(a + k), WIDE_LOAD(b + k)), s);
            sum[i] = vd_fma(x, x, sum[i]);
        }
    for (; j < n; j += VD_LANES) {
        const vd x = vd_sub(T(wide_load)(a + j, n - j), T(wide_load)(b + j, n - j));
        const vd y = vd_mul(x, s);
        sum[0] = vd_fma(y, y, sum[0]);
    }
    return T(total)(sum);
}

static void T(row_divide)(const void *x_, ptrdiff_t n, double scale, double divisor,
                          void *out_)
{
    const REAL *x = x_;
    REAL *out = out_;
    const vd s = vd_set1(scale), d = vd_set1(divisor), share = vd_set1(scale / divisor);
    for (ptrdiff_t j = 0; j < n; j += VD_LANES) {
        const vd y = T(wide_load)(x + j, n - j);
        /* Rounded to float, the product with a double's reciprocal is the quotient. */
        const vd quotient = sizeof(REAL) < sizeof(double) ? vd_mul(y, share)
                                                          : vd_div(vd_mul(y, s), d);
        T(wide_store)(out + j, quotient, n - j);
    }
}

/* out = log2(e) (x - peak) / temperature, in double */
static void T(row_exponents)(const REAL *x, ptrdiff_t n, REAL peak, double temperature,
                             REAL *out)
{
    const vd top = vd_set1(peak), t = vd_set1(temperature);
    const vd log2e = vd_set1(1.44269504088896340736);
    for (ptrdiff_t j = 0; j < n; j += VD_LANES) {
        const vd fall = vd_div(vd_sub(T(wide_load)(x + j, n - j), top), t);
        T(wide_store)(out + j, vd_mul(fall, log2e), n - j);
    }
}

static REAL T(row_peak)(const REAL *x, ptrdiff_t n)
{
    RT top[4];
    ptrdiff_t j = 0;
    RV_UNROLL for (int i = 0; i < 4; i++) top[i] = R(set1)(-(REAL)INFINITY);
    for (; n - j >= 4 * LANES; j += 4 * LANES)
        RV_UNROLL for (int i = 0; i < 4; i++)
            top[i] = R(max)(R(load)(x + j + i * LANES), top[i]);
    for (; n - j >= LANES; j += LANES) top[0] = R(max)(R(load)(x + j), top[0]);
    REAL peak = R(maximum)(R(max)(R(max)(top[0], top[1]), R(max)(top[2], top[3])));
    for (; j < n; j++) peak = x[j] > peak ? x[j] : peak;
    return peak;
}

/* out = 2^(factor (x - peak)); returns its sum, in REAL within short blocks alone */
static double T(row_powers)(const REAL *x, ptrdiff_t n, REAL peak, REAL factor, REAL *out)
{
    const RT top = R(set1)(peak), f = R(set1)(factor);
    double total = 0;
    ptrdiff_t j = 0;
    while (n - j >= LANES) {
        const ptrdiff_t stop = n - j < 64 * LANES ? n / LANES * LANES : j + 64 * LANES;
        RT sum = R(set1)(0);
        for (; j < stop; j += LANES) {
            const RT p = R(exp2)(R(mul)(R(sub)(R(load)(x + j), top), f));
            R(store)(out + j, p);
            sum = R(add)(sum, p);
        }
        total += R(sum)(sum);
    }
    if (j < n) {
        const int rest = (int)(n - j);
        REAL p[LANES];
        R(store)(p, R(exp2)(R(mul)(R(sub)(R(load_n)(x + j, rest), top), f)));
        for (int i = 0; i < rest; i++) total += out[j + i] = p[i];
    }
    return total;
}

static void T(row_softmax)(const void *x_, ptrdiff_t n, double temperature, void *out_)
{
    const REAL *x = x_;
    REAL *out = out_;
    REAL peak = T(row_peak)(x, n);
    double factor = 1.44269504088896340736 / temperature;
    if (peak == -(REAL)INFINITY) peak = 0;
    if (!(factor > 1e-30 && factor < 1e30)) {
        /* Beyond, 0 times the factor might be NaN, or a difference overflow that matters. */
        T(row_exponents)(x, n, peak, temperature, out);
        x = out;
        peak = 0;
        factor = 1;
    }
    const double total = T(row_powers)(x, n, peak, (REAL)factor, out);
    const REAL share = total == 0 ? 1 : (REAL)(1 / total);
    const RT s = R(set1)(share);
    ptrdiff_t j = 0;
    for (; n - j >= LANES; j += LANES) R(store)(out + j, R(mul)(R(load)(out + j), s));
    if (j < n)
        R(store_n)(out + j, R(mul)(R(load_n)(out + j, (int)(n - j)), s), (int)(n - j));
}

/* sums[j] += sum over rows of x[r][j] - center[j], or of its square, for `vectors` vectors
 * of columns of which the last has `left` elements. */
static RV_INLINE void T(add_strip)(const REAL *x, ptrdiff_t ldx, int rows, ptrdiff_t left,
                                   const double *center, double *sums, int vectors,
                                   int squared)
{
    vd c[4], sum[4];
    RV_UNROLL for (int i = 0; i < vectors; i++) {
        c[i] = vd_load(center + i * VD_LANES);
        sum[i] = vd_load(sums + i * VD_LANES);
    }
    for (int r = 0; r < rows; r++, x += ldx)
        RV_UNROLL for (int i = 0; i < vectors; i++) {
            const vd y = vd_sub(T(wide_load)(x + i * VD_LANES, left), c[i]);
            sum[i] = squared ? vd_fma(y, y, sum[i]) : vd_add(sum[i], y);
        }
    RV_UNROLL for (int i = 0; i < vectors; i++) vd_store(sums + i * VD_LANES, sum[i]);
}

static RV_INLINE void T(add_columns)(const REAL *x, int rows, ptrdiff_t n,
                                     const double *center, double *sums, int squared)
{
    ptrdiff_t j = 0;
    for (; n - j >= 4 * VD_LANES; j += 4 * VD_LANES)
        T(add_strip)(x + j, n, rows, VD_LANES, center + j, sums + j, 4, squared);
    for (; j < n; j += VD_LANES)
        T(add_strip)(x + j, n, rows, n - j, center + j, sums + j, 1, squared);
}

static void T(column_sums)(const void *x, int rows, ptrdiff_t n, const double *center,
                           double *sums)
{
    T(add_columns)(x, rows, n, center, sums, 0);
}

static void T(column_squares)(const void *x, int rows, ptrdiff_t n, const double *center,
                              double *sums)
{
    T(add_columns)(x, rows, n, center, sums, 1);
}

static void T(row_standardize)(const void *x_, ptrdiff_t n, const double *mean,
                               const double *factor, void *out_)
{
    const REAL *x = x_;
    REAL *out = out_;
    for (ptrdiff_t j = 0; j < n; j += VD_LANES) {
        const vd y = vd_sub(T(wide_load)(x + j, n - j), vd_load(mean + j));
        T(wide_store)(out + j, vd_mul(y, vd_load(factor + j)), n - j);
    }
}

#include "panels.inc.h"

static const rv_row_tiles T(rows) = {
    .panel = RV_PANEL,
    .real = sizeof(REAL),
    .low = LOW,
    .high = HIGH,
    .softmax = T(row_softmax),
    .squares = T(row_squares),
    .products = T(row_products),
    .distance = T(row_distance),
    .divide = T(row_divide),
    .column_sums = T(column_sums),
    .column_squares = T(column_squares),
    .standardize = T(row_standardize),
    .pack_panel = T(pack_panel),
    .add_distances = T(add_distances),
    .store_distances = T(store_distances),
};


#undef LOW
#undef HIGH
#undef WIDE_LOAD
#undef WIDE_LOAD_N
#undef WIDE_STORE
#undef WIDE_STORE_N
