/* Decode tiles over rows of reals: keys across the lanes, one query a row.
 *
 * Parameters as in softmax.inc.h. Rows may be read and written up to the next multiple of
 * LANES behind nk or dv.
 */

static void T(row_multiply)(void *s_, int nk, const float *factors)
{
    REAL *s = s_;
    for (int j = 0; j < nk; j++) s[j] *= factors[j];
}

static void T(row_softcap)(void *s, int nk, double cap)
{
    const int vectors = (nk + LANES - 1) / LANES;
    T(softcap)(s, vectors, LANES, cap);
    for (int j = nk; j < vectors * LANES; j++) ((REAL *)s)[j] = -(REAL)INFINITY;
}

static void T(row_alibi)(void *s_, int nk, double slope, double position)
{
    REAL *s = s_;
    const RT fall = R(set1)((REAL)slope);
    for (int j = 0; j < nk; j += LANES) {
        /* The difference is formed in double: positions may exceed a float's integers. */
        RT distance = R(abs)(R(sub)(R(set1)((REAL)(position - j)), R(iota)()));
        R(store)(s + j, R(sub)(R(load)(s + j), R(mul)(fall, distance)));
    }
}

static void T(row_add_bias)(void *s_, int nk, const void *bias_, ptrdiff_t key_stride,
                            double unit)
{
    REAL *s = s_;
    const REAL *bias = bias_;
    const REAL factor = (REAL)unit, hidden = -(REAL)INFINITY, lowest = LOWEST / 2;
    for (int j = 0; j < nk; j++) {
        const REAL b = bias[j * key_stride];
        s[j] = b == hidden ? hidden : s[j] + (b < lowest ? lowest : b) * factor;
    }
}

static void T(row_hide_mask)(void *s_, int nk, const void *mask_, ptrdiff_t key_stride)
{
    REAL *s = s_;
    const uint8_t *mask = mask_;
    const REAL hidden = -(REAL)INFINITY;
    for (int j = 0; j < nk; j++) s[j] = mask[j * key_stride] ? s[j] : hidden;
}

static void T(row_hide_outside)(void *s_, int nk, double lower, double upper, double sink)
{
    REAL *s = s_;
    const REAL hidden = -(REAL)INFINITY;
    for (int j = 0; j < nk; j++)
        if (!((j >= lower && j < upper) || j < sink)) s[j] = hidden;
}

static void T(rows_update)(void *s_, ptrdiff_t lds, int rows, int nk, void *m_, void *l_,
                           void *o_, ptrdiff_t ldo)
{
    REAL *m = m_, *l = l_;
    for (int r = 0; r < rows; r++) {
        REAL *s = (REAL *)s_ + r * lds, *o = (REAL *)o_ + r * ldo;
        RT top = R(set1)(m[r]);
        for (int j = 0; j < nk; j += LANES) top = R(max)(R(load)(s + j), top);
        const REAL old = m[r], next = R(maximum)(top);
        const RT base = R(set1)(next);
        RT sum = R(set1)(0);
        for (int j = 0; j < nk; j += LANES) {
            RT p = R(exp2)(R(sub)(R(load)(s + j), base));
            R(store)(s + j, p);
            sum = R(add)(sum, p);
        }
        if (next > old) {
            REAL fall[LANES];
            const RT f = R(exp2)(R(set1)(old - next));
            R(store)(fall, f);
            m[r] = next;
            l[r] *= fall[0];
            for (ptrdiff_t d = 0; d < ldo; d += LANES)
                R(store)(o + d, R(mul)(R(load)(o + d), f));
        }
        l[r] += R(sum)(sum);
    }
}

static void T(row_merge)(void *m_, void *l_, void *o_, const void *m2_, const void *l2_,
                         const void *o2_, ptrdiff_t dv)
{
    REAL *m = m_, *l = l_, *o = o_, fall[LANES];
    const REAL m2 = *(const REAL *)m2_, l2 = *(const REAL *)l2_, *o2 = o2_;
    const REAL top = *m > m2 ? *m : m2;
    const RT f = R(exp2)(R(set1)(*m - top)), f2 = R(exp2)(R(set1)(m2 - top));
    R(store)(fall, f);
    *l *= fall[0];
    R(store)(fall, f2);
    *l += l2 * fall[0];
    *m = top;
    for (ptrdiff_t d = 0; d < dv; d += LANES)
        R(store)(o + d, R(fma)(R(load)(o2 + d), f2, R(mul)(R(load)(o + d), f)));
}

static void T(row_probabilities)(void *s_, ptrdiff_t n, double m, double l, double unit)
{
    REAL *s = s_;
    const RT factor = R(set1)((REAL)unit);
    const RT top = R(set1)((REAL)m), share = R(set1)((REAL)(1 / l));
    const RT hidden = R(set1)(-(REAL)INFINITY), zero = R(set1)(0);
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const int rest = n - j < LANES ? (int)(n - j) : LANES;
        const RT x = rest < LANES ? R(load_n)(s + j, rest) : R(load)(s + j);
        const RT p = R(mul)(R(exp2)(R(sub)(R(mul)(x, factor), top)), share);
        /* Selected, since a hidden key weighs 0 beside an l of NaN, too. */
        const RT seen = R(select)(R(eq)(x, hidden), zero, p);
        if (rest < LANES) R(store_n)(s + j, seen, rest);
        else R(store)(s + j, seen);
    }
}
