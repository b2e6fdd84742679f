/* Rotary positions: stored rows become reals, turned pair by pair (Su et al. 2021, arXiv
 * 2104.09864).
 *
 *   (x, y) -> (x c - y s, x s + y c)
 *
 * A row of the table is laid out as a row of vectors is, with the pair (c, s) in the place of
 * every (x, y): halves apart, or neighbours. `dim` is even. Parameters as in storage.inc.h.
 */

/* n of the LANES lanes; n is a constant but for the last vector of a row */
static RV_INLINE void S(turn_halves)(const ITEM *x, const REAL *turn, ptrdiff_t half, REAL *out,
                                     const int n)
{
    const int whole = n == LANES;
    const RT a = whole ? LOAD(x) : LOAD_N(x, n);
    const RT b = whole ? LOAD(x + half) : LOAD_N(x + half, n);
    const RT c = whole ? R(load)(turn) : R(load_n)(turn, n);
    const RT s = whole ? R(load)(turn + half) : R(load_n)(turn + half, n);
    const RT first = R(sub)(R(mul)(a, c), R(mul)(b, s));
    const RT second = R(fma)(a, s, R(mul)(b, c));
    if (whole) {
        R(store)(out, first);
        R(store)(out + half, second);
    } else {
        R(store_n)(out, first, n);
        R(store_n)(out + half, second, n);
    }
}

static RV_INLINE void S(turn_neighbours)(const ITEM *x, const REAL *turn, RM even, REAL *out,
                                         const int n)
{
    const int whole = n == LANES;
    const RT a = whole ? LOAD(x) : LOAD_N(x, n);
    const RT t = whole ? R(load)(turn) : R(load_n)(turn, n), other = R(swap)(t);
    const RT c = R(select)(even, t, other);
    const RT s = R(select)(even, R(sub)(R(set1)(0), other), t);
    const RT y = R(fma)(R(swap)(a), s, R(mul)(a, c));
    if (whole) R(store)(out, y);
    else R(store_n)(out, y, n);
}

static void S(rotate)(const void *x_, ptrdiff_t ld, ptrdiff_t head_stride, int rows, int heads,
                      ptrdiff_t dim, const int64_t *positions, const void *table,
                      int neighbours, void *out_)
{
    REAL parity[LANES], *out = out_;
    for (int i = 0; i < LANES; i++) parity[i] = (REAL)(i & 1);
    const RM even = R(eq)(R(load)(parity), R(set1)(0));
    const ptrdiff_t width = neighbours ? dim : dim / 2;
    const int rest = (int)(width % LANES);
    for (int j = 0; j < rows; j++) {
        const REAL *turn = (const REAL *)table + positions[j] * dim;
        for (int h = 0; h < heads; h++, out += dim) {
            const ITEM *x = (const ITEM *)x_ + j * ld + h * head_stride;
            ptrdiff_t d = 0;
            if (neighbours) {
                for (; d + LANES <= width; d += LANES)
                    S(turn_neighbours)(x + d, turn + d, even, out + d, LANES);
                if (rest) S(turn_neighbours)(x + d, turn + d, even, out + d, rest);
            } else {
                for (; d + LANES <= width; d += LANES)
                    S(turn_halves)(x + d, turn + d, width, out + d, LANES);
                if (rest) S(turn_halves)(x + d, turn + d, width, out + d, rest);
            }
        }
    }
}
