/* Tiles of the softmax's gradient, for one type of arithmetic.
 *
 *   P = 2^(S - log2(e) L),   dS = P (dP - D),   dP = dO V^T,   D = rowsum(dO o O) - dL
 *
 * (Dao 2023, FlashAttention-2, arXiv 2307.08691, with the gradient dL of L kept.) The same
 * tile serves with queries across the lanes, where L and D are one vector a tile, and with
 * keys across the lanes, where they are one number a row (`by_row`). Parameters as in
 * softmax.inc.h.
 */

static RV_INLINE RT T(either)(const REAL *x, int row, int lane, int by_row)
{
    return by_row ? R(set1)(x[row]) : R(load)(x + lane);
}

/* s becomes p, 0 for a hidden key beside an L of NaN, too; lse is in units of log2, 0 for a row
 * that sees nothing. Scores are computed anew and may exceed L by their rounding, which is large
 * for large ones: p is at most 1. */
static void T(backward_exp)(void *s_, int rows, int cols, const void *lse, int by_row)
{
    REAL *s = s_;
    for (int j = 0; j < rows; j++)
        for (int c = 0; c < cols; c += LANES) {
            REAL *at = s + j * cols + c;
            const RT x = R(load)(at);
            const RT gap = R(sub)(x, T(either)(lse, j, c, by_row));
            const RT p = R(exp2)(R(min)(R(set1)(0), gap));
            R(store)(at, R(select)(R(eq)(x, R(set1)(-(REAL)INFINITY)), R(set1)(0), p));
        }
}

/* dp becomes p (dp - d); a hidden key (p = 0) has no gradient, whatever its dp. */
static void T(backward_scores)(const void *p_, void *dp_, int rows, int cols, const void *d,
                               int by_row)
{
    const REAL *p = p_;
    REAL *dp = dp_;
    const RT zero = R(set1)(0);
    for (int j = 0; j < rows; j++)
        for (int c = 0; c < cols; c += LANES) {
            REAL *at = dp + j * cols + c;
            const RT x = R(load)(p + j * cols + c);
            const RT g = R(mul)(x, R(sub)(R(load)(at), T(either)(d, j, c, by_row)));
            R(store)(at, R(select)(R(eq)(x, zero), zero, g));
        }
}

/* ds *= 1 - (s / cap)^2, s the capped scores */
static void T(backward_softcap)(void *ds_, const void *s_, int rows, int cols, double cap)
{
    REAL *ds = ds_;
    const REAL *s = s_;
    const RT one = R(set1)(1), inverse = R(set1)((REAL)(1 / cap)), minus = R(set1)(-1);
    for (int i = 0; i < rows * cols; i += LANES) {
        const RT t = R(mul)(R(load)(s + i), inverse);
        const RT slope = R(fma)(R(mul)(minus, t), t, one);
        R(store)(ds + i, R(mul)(slope, R(load)(ds + i)));
    }
}

/* sum[cols] += sum_j ds[j] |position - j| */
static void T(backward_alibi)(const void *ds_, int rows, int cols, const void *position_,
                              void *sum_)
{
    const REAL *ds = ds_, *position = position_;
    REAL *sum = sum_;
    for (int c = 0; c < cols; c += LANES) {
        RT total = R(set1)(0);
        for (int j = 0; j < rows; j++) {
            RT distance = R(abs)(R(sub)(R(load)(position + c), R(set1)((REAL)j)));
            total = R(fma)(R(load)(ds + j * cols + c), distance, total);
        }
        R(store)(sum + c, R(add)(R(load)(sum + c), total));
    }
}
