/* Tiles of the streaming softmax for one type of arithmetic.
 *
 *   S = K Q^T,  m' = max(m, rowmax S),  P = 2^(S - m'),
 *   l = 2^(m - m') l + rowsum P,  O = 2^(m - m') O + P V
 *
 * (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao 2023, FlashAttention-2, arXiv
 * 2307.08691.) Queries lie across the lanes: a key or value element is one broadcast, row
 * maximum and row sum are vertical, and P feeds the second product as it lies. For a tile of
 * RV_VECS vectors and nk keys: RV_VECS nk (D + Dv) multiply-add instructions from L1, RV_VECS
 * + RV_KEY_BLOCK loads for every RV_VECS RV_KEY_BLOCK of them.
 *
 * The including file sets REAL and defines R(name) (vf_name or vd_name), RT and RM (vector
 * and mask type), LANES, T(name) (the function's own name) and LOWEST, of REAL.
 */

/* ---- the two products ------------------------------------------------------------- */

#define RV_CHAIN 128 /* head dimensions summed in one chain: longer ones lose digits */

/* s[k][c] (+)= sum_d qt[d][c] key_k[d] for KB keys, KB and VECS constants */
static RV_INLINE void T(score_block)(const REAL *RV_RESTRICT qt, const REAL *RV_RESTRICT k,
                                     ptrdiff_t ldk, ptrdiff_t dim, REAL *RV_RESTRICT s,
                                     int add, const int KB, const int VECS)
{
    RT acc[RV_KEY_BLOCK][RV_VECS];
    const int cols = VECS * LANES;
    /* Three rows hang on one pointer: enough address registers for twelve keys. */
    const REAL *base[(RV_KEY_BLOCK + 2) / 3];
    RV_UNROLL for (int b = 0; b < (KB + 2) / 3; b++) base[b] = k + 3 * b * ldk;
    RV_UNROLL for (int b = 0; b < KB; b++) RV_UNROLL for (int c = 0; c < VECS; c++)
        acc[b][c] = R(set1)(0);
    for (ptrdiff_t d = 0; d < dim; d++) {
        RT q[RV_VECS];
        RV_UNROLL for (int c = 0; c < VECS; c++) q[c] = R(load)(qt + d * cols + c * LANES);
        RV_UNROLL for (int b = 0; b < KB; b++) {
            RT x = R(set1)(base[b / 3][(b % 3) * ldk]);
            RV_UNROLL for (int c = 0; c < VECS; c++) acc[b][c] = R(fma)(x, q[c], acc[b][c]);
        }
        RV_UNROLL for (int b = 0; b < (KB + 2) / 3; b++) base[b]++;
    }
    if (add)
        RV_UNROLL for (int b = 0; b < KB; b++) RV_UNROLL for (int c = 0; c < VECS; c++)
            acc[b][c] = R(add)(R(load)(s + b * cols + c * LANES), acc[b][c]);
    RV_UNROLL for (int b = 0; b < KB; b++) RV_UNROLL for (int c = 0; c < VECS; c++)
        R(store)(s + b * cols + c * LANES, acc[b][c]);
}

/* o[d][c] += sum_j v[j][d] p[j][c] for DB neighbouring d. The tile is summed on its own and
 * then added: one chain over thousands of keys would lose a digit more. */
static RV_INLINE void T(value_block)(const REAL *RV_RESTRICT p, const REAL *RV_RESTRICT v,
                                     ptrdiff_t ldv, int nk, REAL *RV_RESTRICT o,
                                     const int DB, const int VECS)
{
    RT acc[RV_KEY_BLOCK][RV_VECS];
    const int cols = VECS * LANES;
    RV_UNROLL for (int b = 0; b < DB; b++) RV_UNROLL for (int c = 0; c < VECS; c++)
        acc[b][c] = R(set1)(0);
    for (int j = 0; j < nk; j++) {
        RT x[RV_VECS];
        RV_UNROLL for (int c = 0; c < VECS; c++) x[c] = R(load)(p + j * cols + c * LANES);
        RV_UNROLL for (int b = 0; b < DB; b++) {
            RT y = R(set1)(v[b]);
            RV_UNROLL for (int c = 0; c < VECS; c++) acc[b][c] = R(fma)(y, x[c], acc[b][c]);
        }
        v += ldv;
    }
    RV_UNROLL for (int b = 0; b < DB; b++) RV_UNROLL for (int c = 0; c < VECS; c++)
        R(store)(o + b * cols + c * LANES, R(add)(R(load)(o + b * cols + c * LANES), acc[b][c]));
}

static void T(scores)(const void *qt_, int cols, const void *k, ptrdiff_t ldk, int nk,
                      ptrdiff_t dim, void *s)
{
    REAL *out = s;
    for (ptrdiff_t d = 0; d == 0 || d < dim; d += RV_CHAIN) {
        const REAL *key = (const REAL *)k + d, *qt = (const REAL *)qt_ + d * cols;
        const ptrdiff_t n = dim - d < RV_CHAIN ? dim - d : RV_CHAIN;
#define RV_CALL_WIDE(i, KB) \
    T(score_block)(qt, key + (i) * ldk, ldk, n, out + (i) * RV_VECS * LANES, d > 0, KB, RV_VECS);
#define RV_CALL_ONE(i, KB) \
    T(score_block)(qt, key + (i) * ldk, ldk, n, out + (i) * LANES, d > 0, KB, 1);
        if (cols > LANES) RV_FOR_BLOCKS(nk, RV_CALL_WIDE)
        else RV_FOR_BLOCKS(nk, RV_CALL_ONE)
#undef RV_CALL_WIDE
#undef RV_CALL_ONE
    }
}

static void T(accumulate)(const void *p, int cols, const void *v, ptrdiff_t ldv, int nk,
                          ptrdiff_t dv, void *o)
{
    const REAL *value = v;
    REAL *out = o;
#define RV_CALL_WIDE(i, n) \
    T(value_block)(p, value + (i), ldv, nk, out + (i) * RV_VECS * LANES, n, RV_VECS);
#define RV_CALL_ONE(i, n) T(value_block)(p, value + (i), ldv, nk, out + (i) * LANES, n, 1);
    if (cols > LANES) RV_FOR_BLOCKS(dv, RV_CALL_WIDE)
    else RV_FOR_BLOCKS(dv, RV_CALL_ONE)
#undef RV_CALL_WIDE
#undef RV_CALL_ONE
}

/* ---- score epilogues -------------------------------------------------------------- */

/* tanh|x| = (1 - e^-2|x|)/(1 + e^-2|x|), sign restored; near 0, where the difference would
 * lose digits, the odd Taylor series to x^11. Relative error below 5e-7 and 1e-14. */
static RV_INLINE RT T(tanh)(RT x)
{
    const RT one = R(set1)(1);
    RT a = R(abs)(x), x2 = R(mul)(x, x);
    RT e = R(exp2)(R(mul)(R(set1)((REAL)-2.88539008177792681472), a)); /* e^-2a */
    RT big = R(div)(R(sub)(one, e), R(add)(one, e));
    big = R(select)(R(lt)(x, R(set1)(0)), R(sub)(R(set1)(0), big), big);
    RT t = R(set1)((REAL)(-1382.0 / 155925));
    t = R(fma)(t, x2, R(set1)((REAL)(62.0 / 2835)));
    t = R(fma)(t, x2, R(set1)((REAL)(-17.0 / 315)));
    t = R(fma)(t, x2, R(set1)((REAL)(2.0 / 15)));
    t = R(fma)(t, x2, R(set1)((REAL)(-1.0 / 3)));
    RT small = R(fma)(R(mul)(t, x2), x, x);
    return R(select)(R(lt)(a, R(set1)((REAL)(sizeof(REAL) == 4 ? 0.25 : 0.03125))), small, big);
}

static void T(softcap)(void *s_, int nk, int cols, double cap)
{
    REAL *s = s_;
    const RT c = R(set1)((REAL)cap), inverse = R(set1)((REAL)(1.0 / cap));
    for (int i = 0; i < nk * cols; i += LANES)
        R(store)(s + i, R(mul)(c, T(tanh)(R(mul)(R(load)(s + i), inverse))));
}

static void T(alibi)(void *s_, int nk, int cols, const void *slope_, const void *position_)
{
    REAL *s = s_;
    const REAL *slope = slope_, *position = position_;
    for (int j = 0; j < nk; j++)
        for (int c = 0; c < cols; c += LANES) {
            RT distance = R(abs)(R(sub)(R(load)(position + c), R(set1)((REAL)j)));
            RT fall = R(mul)(R(load)(slope + c), distance);
            R(store)(s + j * cols + c, R(sub)(R(load)(s + j * cols + c), fall));
        }
}

static void T(add_bias)(void *s_, int nk, int cols, const void *const *rows,
                        ptrdiff_t key_stride, double unit)
{
    REAL *s = s_;
    REAL lane[RV_VECS * LANES];
    const RT factor = R(set1)((REAL)unit), hidden = R(set1)(-(REAL)INFINITY);
    /* A finite bias hides nothing, not even where `unit` times the lowest is not finite. */
    const RT lowest = R(set1)(LOWEST / 2);
    for (int j = 0; j < nk; j++) {
        for (int i = 0; i < cols; i++) lane[i] = ((const REAL *)rows[i])[j * key_stride];
        for (int c = 0; c < cols; c += LANES) {
            RT b = R(load)(lane + c);
            RT x = R(fma)(R(max)(lowest, b), factor, R(load)(s + j * cols + c));
            R(store)(s + j * cols + c, R(select)(R(eq)(b, hidden), hidden, x));
        }
    }
}

static void T(multiply)(void *s_, int nk, int cols, double factor)
{
    REAL *s = s_;
    const RT f = R(set1)((REAL)factor);
    for (int i = 0; i < nk * cols; i += LANES) R(store)(s + i, R(mul)(f, R(load)(s + i)));
}

static void T(scale_rows)(void *x_, int rows, ptrdiff_t dim, const float *factors)
{
    REAL *x = x_;
    for (int j = 0; j < rows; j++, x += dim) {
        const REAL f = factors[j];
        for (ptrdiff_t d = 0; d < dim; d++) x[d] *= f;
    }
}

static void T(hide_mask)(void *s_, int nk, int cols, const void *const *rows,
                         ptrdiff_t key_stride)
{
    REAL *s = s_;
    REAL lane[RV_VECS * LANES];
    const RT hidden = R(set1)(-(REAL)INFINITY), zero = R(set1)(0);
    for (int j = 0; j < nk; j++) {
        for (int i = 0; i < cols; i++) lane[i] = ((const uint8_t *)rows[i])[j * key_stride];
        for (int c = 0; c < cols; c += LANES) {
            REAL *at = s + j * cols + c;
            R(store)(at, R(select)(R(eq)(R(load)(lane + c), zero), hidden, R(load)(at)));
        }
    }
}

static void T(hide_outside)(void *s_, int nk, int cols, const void *lower_, const void *upper_,
                            const void *sink_)
{
    REAL *s = s_;
    const REAL *lower = lower_, *upper = upper_, *sink = sink_;
    const RT hidden = R(set1)(-(REAL)INFINITY);
    for (int c = 0; c < cols; c += LANES) {
        const RT lo = R(load)(lower + c), hi = R(load)(upper + c), end = R(load)(sink + c);
        for (int j = 0; j < nk; j++) {
            REAL *at = s + j * cols + c;
            RT x = R(set1)((REAL)j);
            RM before = R(lt)(x, lo), inside = R(lt)(x, hi);
            RT seen = R(select)(inside, R(load)(at), hidden);
            seen = R(select)(before, hidden, seen);
            R(store)(at, R(select)(R(lt)(x, end), R(load)(at), seen));
        }
    }
}

/* ---- online softmax --------------------------------------------------------------- */

static RV_INLINE void T(update_vectors)(REAL *RV_RESTRICT s, int nk, REAL *RV_RESTRICT m,
                                        REAL *RV_RESTRICT l, REAL *RV_RESTRICT o,
                                        ptrdiff_t dv, const int VECS)
{
    const int cols = VECS * LANES;
    RT old[RV_VECS], top[RV_VECS], next[RV_VECS], sum[RV_VECS], sum2[RV_VECS];
    /* Two chains a column: the latency of max and add would bound a short tile. */
    RV_UNROLL for (int c = 0; c < VECS; c++) {
        top[c] = next[c] = old[c] = R(load)(m + c * LANES);
        sum[c] = sum2[c] = R(set1)(0);
    }
    int j = 0;
    for (; j + 1 < nk; j += 2) RV_UNROLL for (int c = 0; c < VECS; c++) {
        top[c] = R(max)(R(load)(s + j * cols + c * LANES), top[c]);
        next[c] = R(max)(R(load)(s + (j + 1) * cols + c * LANES), next[c]);
    }
    if (j < nk) RV_UNROLL for (int c = 0; c < VECS; c++)
        top[c] = R(max)(R(load)(s + j * cols + c * LANES), top[c]);
    RV_UNROLL for (int c = 0; c < VECS; c++) top[c] = R(max)(next[c], top[c]);

    for (j = 0; j + 1 < nk; j += 2) RV_UNROLL for (int c = 0; c < VECS; c++) {
        REAL *at = s + j * cols + c * LANES;
        RT p = R(exp2)(R(sub)(R(load)(at), top[c]));
        RT q = R(exp2)(R(sub)(R(load)(at + cols), top[c]));
        R(store)(at, p);
        R(store)(at + cols, q);
        sum[c] = R(add)(sum[c], p);
        sum2[c] = R(add)(sum2[c], q);
    }
    if (j < nk) RV_UNROLL for (int c = 0; c < VECS; c++) {
        REAL *at = s + j * cols + c * LANES;
        RT p = R(exp2)(R(sub)(R(load)(at), top[c]));
        R(store)(at, p);
        sum[c] = R(add)(sum[c], p);
    }

    RV_UNROLL for (int c = 0; c < VECS; c++) {
        RT total = R(add)(sum[c], sum2[c]);
        if (R_MASK(any)(R(lt)(old[c], top[c]))) {
            RT fall = R(exp2)(R(sub)(old[c], top[c]));
            R(store)(m + c * LANES, top[c]);
            total = R(fma)(R(load)(l + c * LANES), fall, total);
            for (ptrdiff_t d = 0; d < dv; d++) {
                REAL *at = o + d * cols + c * LANES;
                R(store)(at, R(mul)(R(load)(at), fall));
            }
        } else {
            total = R(add)(R(load)(l + c * LANES), total);
        }
        R(store)(l + c * LANES, total);
    }
}

static void T(update)(void *s, int nk, int cols, void *m, void *l, void *o, ptrdiff_t dv)
{
    if (cols > LANES) T(update_vectors)(s, nk, m, l, o, dv, RV_VECS);
    else T(update_vectors)(s, nk, m, l, o, dv, 1);
}

/* ---- values behind a mask --------------------------------------------------------- */

static void T(accumulate_visible)(const void *p_, const void *scores, int cols, const void *v,
                                  ptrdiff_t ldv, int nk, ptrdiff_t dv, void *o_)
{
    const REAL *p = p_, *s = scores, *value = v;
    REAL *o = o_;
    const RT hidden = R(set1)(-(REAL)INFINITY);
    for (int j = 0; j < nk; j++)
        for (ptrdiff_t d = 0; d < dv; d++) {
            RT x = R(set1)(value[j * ldv + d]);
            for (int c = 0; c < cols; c += LANES) {
                RT before = R(load)(o + d * cols + c);
                RT after = R(fma)(x, R(load)(p + j * cols + c), before);
                RM unseen = R(eq)(R(load)(s + j * cols + c), hidden);
                R(store)(o + d * cols + c, R(select)(unseen, before, after));
            }
        }
}

/* ---- the end of a row ------------------------------------------------------------- */

static REAL T(natural_lse)(REAL m, REAL l)
{
    if (l == 0) return -(REAL)INFINITY;
    return (REAL)(((double)m + log2((double)l)) * 0.69314718055994530942);
}

#include "decode_rows.inc.h"
#include "ball.inc.h"
#include "backward.inc.h"
