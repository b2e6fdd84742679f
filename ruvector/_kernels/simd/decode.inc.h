/* Decode tiles that read keys and values in one storage type, vectors along the head.
 *
 *   s[r][j] = q_r . k_j        o[r] += sum_j p[r][j] v_j
 *
 * Bound by memory: each key and value row is read once and in order, rows ahead are
 * prefetched. Parameters as in storage.inc.h (ITEM, S, LOAD, LOAD_N) and softmax.inc.h.
 */

/* Vectors that share one prefetch: those of a cache line, four at the most. */
#define RV_SHARED (64 / (int)sizeof(ITEM) / LANES)
#define RV_LINE (RV_SHARED < 1 ? 1 : RV_SHARED > 4 ? 4 : RV_SHARED)

#ifndef RV_AHEAD
#define RV_AHEAD
/* Rows between the one that is read and the one that is prefetched: 8 KB of one head's rows,
 * or the next block of 16 where several heads are read side by side, two of bytes. */
static RV_INLINE ptrdiff_t rv_ahead(ptrdiff_t row_bytes, int heads, size_t item)
{
    const ptrdiff_t size = row_bytes < 0 ? -row_bytes : row_bytes;
    if (heads > 1) return item > 1 ? 16 : 32;
    return size > 2048 ? 4 : 8192 / (size + 1) + 1;
}
#endif

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
        for (; d + RV_LINE * LANES <= dim; d += RV_LINE * LANES)
            RV_UNROLL for (int i = 0; i < ROWS; i++) {
                RV_PREFETCH(row[i] + d + ahead);
                RV_UNROLL for (int c = 0; c < RV_LINE * LANES; c += LANES) {
                    RT x = LOAD(row[i] + d + c);
                    RV_UNROLL for (int g = 0; g < G; g++)
                        acc[i][g] = R(fma)(x, R(load)(q + g * ldq + d + c), acc[i][g]);
                }
            }
        for (; RV_LINE > 1 && d + LANES <= dim; d += LANES)
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
    const ptrdiff_t ahead = ldk * rv_ahead(ldk * (ptrdiff_t)sizeof(ITEM), heads, sizeof(ITEM));
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
            if (c % RV_LINE == 0) RV_PREFETCH(at + ahead);
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
    const ptrdiff_t ahead = ldv * rv_ahead(ldv * (ptrdiff_t)sizeof(ITEM), heads, sizeof(ITEM));
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

#undef RV_LINE
#undef RV_SHARED
