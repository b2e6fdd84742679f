/* Decode tiles that read keys and values in one storage type, vectors along the head.
 *
 *   s[r][j] = q_r . k_j        o[r] += sum_j p[r][j] v_j
 *
 * Bound by memory: each key and value row is read once and in order, rows ahead are
 * prefetched. Parameters as in storage.inc.h (ITEM, S, LOAD, LOAD_N) and softmax.inc.h.
 */

#ifndef RV_AHEAD
#define RV_AHEAD
/* Rows between the one that is read and the one that is prefetched: 8 KB of one head's rows,
 * or the next block of 16 where several heads are read side by side. */
static RV_INLINE ptrdiff_t rv_ahead(ptrdiff_t row_bytes, int heads)
{
    const ptrdiff_t size = row_bytes < 0 ? -row_bytes : row_bytes;
    if (heads > 1) return 16;
    return size > 2048 ? 4 : 8192 / (size + 1) + 1;
}
#endif

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

/* Scores of LANES keys (rows k[0..n), the last one repeated) against G queries of one head. */
static RV_INLINE void S(score_keys)(const REAL *q, ptrdiff_t ldq, const ITEM *k, ptrdiff_t ldk,
                                    int n, ptrdiff_t dim, REAL *s, ptrdiff_t lds, ptrdiff_t ahead,
                                    const int G)
{
    enum { ROWS = LANES < 4 ? LANES : 4 }; /* rows in flight: enough chains, and streams */
    RT sums[2][LANES];
    for (int b = 0; b < LANES; b += ROWS) {
        const ITEM *row[ROWS];
        RT acc[ROWS][2];
        RV_UNROLL for (int i = 0; i < ROWS; i++) {
            row[i] = k + (b + i < n ? b + i : n - 1) * ldk;
            RV_UNROLL for (int g = 0; g < G; g++) acc[i][g] = R(set1)(0);
        }
        ptrdiff_t d = 0;
        for (; d + LANES <= dim; d += LANES)
            RV_UNROLL for (int i = 0; i < ROWS; i++) {
                RT x = LOAD(row[i] + d);
                RV_PREFETCH(row[i] + d + ahead);
                RV_UNROLL for (int g = 0; g < G; g++)
                    acc[i][g] = R(fma)(x, R(load)(q + g * ldq + d), acc[i][g]);
            }
        if (d < dim)
            RV_UNROLL for (int i = 0; i < ROWS; i++) {
                RT x = LOAD_N(row[i] + d, (int)(dim - d));
                RV_UNROLL for (int g = 0; g < G; g++)
                    acc[i][g] = R(fma)(x, R(load)(q + g * ldq + d), acc[i][g]);
            }
        RV_UNROLL for (int i = 0; i < ROWS; i++) RV_UNROLL for (int g = 0; g < G; g++)
            sums[g][b + i] = acc[i][g];
    }
    RV_UNROLL for (int g = 0; g < G; g++) {
        RT x = R(sum_each)(sums[g]);
        if (n < LANES)
            x = R(select)(R(lt)(R(iota)(), R(set1)((REAL)n)), x, R(set1)(-(REAL)INFINITY));
        R(store)(s + g * lds, x);
    }
}

static void S(decode_scores)(const void *q_, ptrdiff_t ldq, const void *k_, ptrdiff_t ldk,
                             ptrdiff_t head_stride, int nk, int heads, int group,
                             ptrdiff_t dim, void *s_, ptrdiff_t lds)
{
    const REAL *q = q_;
    REAL *s = s_;
    const ptrdiff_t ahead = ldk * rv_ahead(ldk * (ptrdiff_t)sizeof(ITEM), heads);
    for (int j = 0; j < nk; j += LANES) {
        const int n = nk - j < LANES ? nk - j : LANES;
        for (int h = 0; h < heads; h++) {
            const ITEM *k = (const ITEM *)k_ + j * ldk + h * head_stride;
            int r = h * group, end = r + group;
            for (; r + 2 <= end; r += 2)
                S(score_keys)(q + r * ldq, ldq, k, ldk, n, dim, s + r * lds + j, lds,
                              ahead, 2);
            if (r < end)
                S(score_keys)(q + r * ldq, ldq, k, ldk, n, dim, s + r * lds + j, lds,
                              ahead, 1);
        }
    }
}

/* o[0..G)[0..VECS * LANES) += sum over n keys; a last, partial vector has `width` lanes. Few
 * vectors take even and odd keys apart: one chain each would wait for its multiply-adds. */
static RV_INLINE void S(add_values)(const REAL *p, ptrdiff_t lds, const ITEM *v, ptrdiff_t ldv,
                                    int n, ptrdiff_t width, REAL *o, ptrdiff_t ldo,
                                    ptrdiff_t ahead, const int G, const int VECS)
{
    enum { MOST = 12 };
    const int chains = G * VECS < 8 ? 2 : 1, part = VECS == 1 && width < LANES;
    RT acc[2][2][MOST];
    RV_UNROLL for (int g = 0; g < G; g++) RV_UNROLL for (int c = 0; c < VECS; c++) {
        acc[0][g][c] = R(load)(o + g * ldo + c * LANES);
        acc[1][g][c] = R(set1)(0);
    }
    int j = 0;
    for (; j + chains <= n; j += chains, v += chains * ldv)
        RV_UNROLL for (int i = 0; i < chains; i++) RV_UNROLL for (int c = 0; c < VECS; c++) {
            const ITEM *at = v + i * ldv + c * LANES;
            RT x = part ? LOAD_N(at, (int)width) : LOAD(at);
            RV_PREFETCH(at + ahead);
            RV_UNROLL for (int g = 0; g < G; g++)
                acc[i][g][c] = R(fma)(x, R(set1)(p[g * lds + j + i]), acc[i][g][c]);
        }
    if (j < n)
        RV_UNROLL for (int c = 0; c < VECS; c++) {
            RT x = part ? LOAD_N(v, (int)width) : LOAD(v + c * LANES);
            RV_UNROLL for (int g = 0; g < G; g++)
                acc[0][g][c] = R(fma)(x, R(set1)(p[g * lds + j]), acc[0][g][c]);
        }
    RV_UNROLL for (int g = 0; g < G; g++) RV_UNROLL for (int c = 0; c < VECS; c++)
        R(store)(o + g * ldo + c * LANES, R(add)(acc[0][g][c], acc[1][g][c]));
}

static RV_INLINE void S(add_value_rows)(const REAL *p, ptrdiff_t lds, const ITEM *v,
                                        ptrdiff_t ldv, int n, ptrdiff_t dv, REAL *o,
                                        ptrdiff_t ldo, ptrdiff_t ahead, const int G)
{
    ptrdiff_t d = 0;
    if (G == 1)
        for (; d + 12 * LANES <= dv; d += 12 * LANES)
            S(add_values)(p, lds, v + d, ldv, n, 12 * LANES, o + d, ldo, ahead, G, 12);
    for (; d + 4 * LANES <= dv; d += 4 * LANES)
        S(add_values)(p, lds, v + d, ldv, n, 4 * LANES, o + d, ldo, ahead, G, 4);
    if (d + 3 * LANES <= dv) {
        S(add_values)(p, lds, v + d, ldv, n, 3 * LANES, o + d, ldo, ahead, G, 3);
        d += 3 * LANES;
    } else if (d + 2 * LANES <= dv) {
        S(add_values)(p, lds, v + d, ldv, n, 2 * LANES, o + d, ldo, ahead, G, 2);
        d += 2 * LANES;
    }
    for (; d < dv; d += LANES)
        S(add_values)(p, lds, v + d, ldv, n, dv - d, o + d, ldo, ahead, G, 1);
}

static void S(decode_accumulate)(const void *p_, const void *scores, ptrdiff_t lds,
                                 const void *v_, ptrdiff_t ldv, ptrdiff_t head_stride, int nk,
                                 int heads, int group, ptrdiff_t dv, void *o_, ptrdiff_t ldo)
{
    const REAL *p = p_, *s = scores;
    REAL *o = o_;
    const ptrdiff_t ahead = ldv * rv_ahead(ldv * (ptrdiff_t)sizeof(ITEM), heads);
    /* 16 rows at a time: what one head leaves of them is still in L1 for the next. */
    for (int j = 0; j < nk; j += 16) {
        const int n = nk - j < 16 ? nk - j : 16;
        for (int h = 0; h < heads; h++) {
            const ITEM *v = (const ITEM *)v_ + j * ldv + h * head_stride;
            int r = h * group, end = r + group;
            if (s) {
                for (; r < end; r++)
                    for (int i = 0; i < n; i++)
                        if (s[r * lds + j + i] != -(REAL)INFINITY)
                            S(add_value_rows)(p + r * lds + j + i, lds, v + i * ldv, ldv, 1,
                                              dv, o + r * ldo, ldo, ahead, 1);
                continue;
            }
            for (; r + 2 <= end; r += 2)
                S(add_value_rows)(p + r * lds + j, lds, v, ldv, n, dv, o + r * ldo, ldo, ahead, 2);
            if (r < end)
                S(add_value_rows)(p + r * lds + j, lds, v, ldv, n, dv, o + r * ldo, ldo, ahead, 1);
        }
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
