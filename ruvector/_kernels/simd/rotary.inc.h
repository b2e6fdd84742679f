/* Rotary positions: stored rows are turned pair by pair as they are read (Su et al. 2021,
 * arXiv 2104.09864).
 *
 *   (x, y) -> (x c - y s, x s + y c)
 *
 * A row of the table is laid out as a row of vectors is, with the pair (c, s) in the place of
 * every (x, y): halves apart, or neighbours. `dim` is even. Parameters as in storage.inc.h;
 * a last, partial vector has n < LANES lanes, and only those are touched.
 */

static RV_INLINE void S(turn_halves)(const ITEM *x, const REAL *turn, ptrdiff_t half, int n,
                                     RT *first, RT *second)
{
    const int whole = n == LANES;
    const RT a = whole ? LOAD(x) : LOAD_N(x, n);
    const RT b = whole ? LOAD(x + half) : LOAD_N(x + half, n);
    const RT c = whole ? R(load)(turn) : R(load_n)(turn, n);
    const RT s = whole ? R(load)(turn + half) : R(load_n)(turn + half, n);
    *first = R(sub)(R(mul)(a, c), R(mul)(b, s));
    *second = R(fma)(a, s, R(mul)(b, c));
}

static RV_INLINE RT S(turn_neighbours)(const ITEM *x, const REAL *turn, RM even, int n)
{
    const int whole = n == LANES;
    const RT a = whole ? LOAD(x) : LOAD_N(x, n);
    const RT t = whole ? R(load)(turn) : R(load_n)(turn, n), other = R(swap)(t);
    const RT c = R(select)(even, t, other);
    const RT s = R(select)(even, R(sub)(R(set1)(0), other), t);
    return R(fma)(R(swap)(a), s, R(mul)(a, c));
}

static RV_INLINE RM S(even_lanes)(void)
{
    REAL parity[LANES];
    for (int i = 0; i < LANES; i++) parity[i] = (REAL)(i & 1);
    return R(eq)(R(load)(parity), R(set1)(0));
}

static RV_INLINE void S(store_turned)(const ITEM *x, const REAL *turn, ptrdiff_t width, RM even,
                                      int n, REAL *out, const int NEIGHBOURS)
{
    RT first, second;
    if (NEIGHBOURS) first = S(turn_neighbours)(x, turn, even, n);
    else S(turn_halves)(x, turn, width, n, &first, &second);
    if (n == LANES) R(store)(out, first);
    else R(store_n)(out, first, n);
    if (NEIGHBOURS) return;
    if (n == LANES) R(store)(out + width, second);
    else R(store_n)(out + width, second, n);
}

static RV_INLINE void S(rotate_row)(const ITEM *x, const REAL *turn, ptrdiff_t width, RM even,
                                    REAL *out, const int NEIGHBOURS)
{
    ptrdiff_t d = 0;
    for (; d + LANES <= width; d += LANES)
        S(store_turned)(x + d, turn + d, width, even, LANES, out + d, NEIGHBOURS);
    if (d < width)
        S(store_turned)(x + d, turn + d, width, even, (int)(width - d), out + d, NEIGHBOURS);
}

static void S(rotate)(const void *x_, ptrdiff_t ld, ptrdiff_t head_stride, int rows, int heads,
                      ptrdiff_t dim, const int64_t *positions, const void *table,
                      int neighbours, void *out_)
{
    REAL *out = out_;
    const RM even = S(even_lanes)();
    for (int j = 0; j < rows; j++) {
        const REAL *turn = (const REAL *)table + positions[j] * dim;
        for (int h = 0; h < heads; h++, out += dim) {
            const ITEM *x = (const ITEM *)x_ + j * ld + h * head_stride;
            if (neighbours) S(rotate_row)(x, turn, dim, even, out, 1);
            else S(rotate_row)(x, turn, dim / 2, even, out, 0);
        }
    }
}

/* acc[g] += part of the dot products of one key with G queries */
static RV_INLINE void S(add_turned)(const REAL *q, ptrdiff_t ldq, const ITEM *k,
                                    const REAL *turn, ptrdiff_t width, RM even, int n, RT *acc,
                                    const int G, const int NEIGHBOURS)
{
    RT first, second;
    if (NEIGHBOURS) first = S(turn_neighbours)(k, turn, even, n);
    else S(turn_halves)(k, turn, width, n, &first, &second);
    RV_UNROLL for (int g = 0; g < G; g++, q += ldq) {
        acc[g] = R(fma)(first, n == LANES ? R(load)(q) : R(load_n)(q, n), acc[g]);
        if (NEIGHBOURS) continue;
        acc[g] = R(fma)(second, n == LANES ? R(load)(q + width) : R(load_n)(q + width, n),
                        acc[g]);
    }
}

/* As score_keys in decode.inc.h, over keys that are turned on the way. */
static RV_INLINE void S(score_turned)(const REAL *q, ptrdiff_t ldq, const ITEM *k, ptrdiff_t ldk,
                                      int keys, ptrdiff_t dim, const int64_t *positions,
                                      const REAL *table, RM even, REAL *s, ptrdiff_t lds,
                                      ptrdiff_t ahead, const int G, const int NEIGHBOURS)
{
    enum { ROWS = LANES < 4 ? LANES : 4 };
    const ptrdiff_t width = NEIGHBOURS ? dim : dim / 2;
    RT sums[2][LANES];
    for (int b = 0; b < LANES; b += ROWS) {
        const ITEM *row[ROWS];
        const REAL *turn[ROWS];
        RT acc[ROWS][2];
        RV_UNROLL for (int i = 0; i < ROWS; i++) {
            const int j = b + i < keys ? b + i : keys - 1;
            row[i] = k + j * ldk;
            turn[i] = table + positions[j] * dim;
            RV_UNROLL for (int g = 0; g < G; g++) acc[i][g] = R(set1)(0);
        }
        ptrdiff_t d = 0;
        for (; d + LANES <= width; d += LANES)
            RV_UNROLL for (int i = 0; i < ROWS; i++) {
                RV_PREFETCH(row[i] + d + ahead);
                if (!NEIGHBOURS) RV_PREFETCH(row[i] + d + width + ahead);
                S(add_turned)(q + d, ldq, row[i] + d, turn[i] + d, width, even, LANES, acc[i],
                              G, NEIGHBOURS);
            }
        if (d < width)
            RV_UNROLL for (int i = 0; i < ROWS; i++)
                S(add_turned)(q + d, ldq, row[i] + d, turn[i] + d, width, even,
                              (int)(width - d), acc[i], G, NEIGHBOURS);
        RV_UNROLL for (int i = 0; i < ROWS; i++) RV_UNROLL for (int g = 0; g < G; g++)
            sums[g][b + i] = acc[i][g];
    }
    RV_UNROLL for (int g = 0; g < G; g++) {
        RT x = R(sum_each)(sums[g]);
        if (keys < LANES)
            x = R(select)(R(lt)(R(iota)(), R(set1)((REAL)keys)), x, R(set1)(-(REAL)INFINITY));
        R(store)(s + g * lds, x);
    }
}

static void S(rotary_scores)(const void *q_, ptrdiff_t ldq, const void *k_, ptrdiff_t ldk,
                             ptrdiff_t head_stride, int nk, int heads, int group,
                             ptrdiff_t dim, const int64_t *positions, const void *table,
                             int neighbours, void *s_, ptrdiff_t lds)
{
    const ptrdiff_t ahead = ldk * rv_ahead(ldk * (ptrdiff_t)sizeof(ITEM), heads, sizeof(ITEM));
    const RM even = S(even_lanes)();
    for (int j = 0; j < nk; j += LANES) {
        const int n = nk - j < LANES ? nk - j : LANES;
        for (int h = 0; h < heads; h++) {
            const ITEM *k = (const ITEM *)k_ + j * ldk + h * head_stride;
            for (int g = 0; g < group;) {
                const REAL *q = (const REAL *)q_ + (h * group + g) * ldq;
                REAL *s = (REAL *)s_ + (h * group + g) * lds + j;
                const int two = group - g > 1;
#define RV_CALL(G, NEIGHBOURS)                                                                \
    S(score_turned)(q, ldq, k, ldk, n, dim, positions + j, table, even, s, lds, ahead, G,     \
                    NEIGHBOURS)
                if (two && neighbours) RV_CALL(2, 1);
                else if (two) RV_CALL(2, 0);
                else if (neighbours) RV_CALL(1, 1);
                else RV_CALL(1, 0);
#undef RV_CALL
                g += 1 + two;
            }
        }
    }
}
