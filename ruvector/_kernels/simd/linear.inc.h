/* Tiles of linear attention for one type of arithmetic, beside the products and the online
 * softmax of softmax.inc.h.
 *
 *   A = sum_j phi(k_j) v_j^T,   o = phi(q) A,   phi(x) = 2^(W x - h(x) - top) + epsilon
 *
 * (Choromanski et al. 2020, arXiv 2009.14794; exponents are in units of log2.) A tile of
 * features is a tile of scores: over keys with rows of W across the lanes, or over rows of W
 * with queries across the lanes. Parameters as in softmax.inc.h.
 */

/* s[j][c] -= h[j] */
static void T(linear_subtract)(void *s_, int nk, int cols, const void *h_)
{
    REAL *s = s_;
    const REAL *h = h_;
    for (int j = 0; j < nk; j++) {
        const RT x = R(set1)(h[j]);
        for (int c = 0; c < cols; c += LANES)
            R(store)(s + j * cols + c, R(sub)(R(load)(s + j * cols + c), x));
    }
}

/* s = max(s, 0) + epsilon, or elu(s) + 1; then times factor[j], and summed to sum[c], where
 * these are not null. */
static void T(linear_activate)(void *s_, int nk, int cols, int elu, double epsilon,
                               const void *factor_, void *sum_)
{
    REAL *s = s_, *sum = sum_;
    const REAL *factor = factor_;
    const RT zero = R(set1)(0), one = R(set1)(1), more = R(set1)((REAL)epsilon);
    const RT log2e = R(set1)((REAL)1.44269504088896340736);
    for (int c = 0; c < cols; c += LANES) {
        RT total = sum ? R(load)(sum + c) : zero;
        for (int j = 0; j < nk; j++) {
            REAL *at = s + j * cols + c;
            RT x = R(load)(at);
            if (elu) {
                const RT low = R(exp2)(R(mul)(log2e, x));
                x = R(select)(R(lt)(zero, x), R(add)(x, one), low);
            } else {
                x = R(add)(R(max)(zero, x), more);
            }
            if (factor) x = R(mul)(x, R(set1)(factor[j]));
            R(store)(at, x);
            total = R(add)(total, x);
        }
        if (sum) R(store)(sum + c, total);
    }
}

/* top[j] = max(top[j], max_c s[j][c]); a NaN does not count */
static void T(linear_row_maxima)(const void *s_, int nk, int cols, void *top_)
{
    const REAL *s = s_;
    REAL *top = top_;
    for (int j = 0; j < nk; j++) {
        RT x = R(set1)(top[j]);
        for (int c = 0; c < cols; c += LANES) x = R(max)(R(load)(s + j * cols + c), x);
        top[j] = R(maximum)(x);
    }
}

/* o[d][c] = factor[c] o[d][c] + share[c] x[d] */
static void T(linear_mix)(void *o_, ptrdiff_t rows, int cols, const void *factor_,
                          const void *share_, const void *x_)
{
    REAL *o = o_;
    const REAL *factor = factor_, *share = share_, *x = x_;
    for (int c = 0; c < cols; c += LANES) {
        const RT f = R(load)(factor + c), g = R(load)(share + c);
        for (ptrdiff_t d = 0; d < rows; d++) {
            REAL *at = o + d * cols + c;
            R(store)(at, R(fma)(g, R(set1)(x[d]), R(mul)(f, R(load)(at))));
        }
    }
}

/* Products of features within a block: p[j][c] becomes 2^(key_top[j] - top[c]) p[j][c] +
 * share[c] where query c sees key j (j < count[c]), else 0, and is added to sum[c]. Without
 * key_top the products stay as they are. */
static void T(linear_causal)(void *p_, int nk, int cols, const void *key_top_,
                             const void *top_, const void *share_, const void *count_,
                             void *sum_)
{
    REAL *p = p_, *sum = sum_;
    const REAL *key_top = key_top_, *top = top_, *share = share_, *count = count_;
    const RT zero = R(set1)(0);
    for (int c = 0; c < cols; c += LANES) {
        const RT seen = R(load)(count + c);
        RT total = R(load)(sum + c);
        for (int j = 0; j < nk; j++) {
            REAL *at = p + j * cols + c;
            RT x = R(load)(at);
            if (key_top) {
                const RT fall = R(exp2)(R(sub)(R(set1)(key_top[j]), R(load)(top + c)));
                x = R(fma)(fall, x, R(load)(share + c));
            }
            x = R(select)(R(lt)(R(set1)((REAL)j), seen), x, zero);
            R(store)(at, x);
            total = R(add)(total, x);
        }
        R(store)(sum + c, total);
    }
}

/* s[k][c] += sum_d qt[d][c] key_k[d] */
static void T(linear_add_scores)(const void *qt, int cols, const void *k, ptrdiff_t ldk, int nk,
                                 ptrdiff_t dim, void *s)
{
    REAL *out = s;
    const REAL *key = k;
#define RV_CALL_WIDE(i, KB) \
    T(score_block)(qt, key + (i) * ldk, ldk, dim, out + (i) * RV_VECS * LANES, 1, KB, RV_VECS);
#define RV_CALL_ONE(i, KB) \
    T(score_block)(qt, key + (i) * ldk, ldk, dim, out + (i) * LANES, 1, KB, 1);
    if (cols > LANES) RV_FOR_BLOCKS(nk, RV_CALL_WIDE)
    else RV_FOR_BLOCKS(nk, RV_CALL_ONE)
#undef RV_CALL_WIDE
#undef RV_CALL_ONE
}

/* sum[d] = sum_j v[j][d] */
static void T(linear_column_sums)(const void *v_, ptrdiff_t ldv, int nk, ptrdiff_t dv,
                                  void *sum_)
{
    const REAL *v = v_;
    REAL *sum = sum_;
    ptrdiff_t d = 0;
    /* Several chains of additions: the latency of one would bound a row. */
    for (; d + 4 * LANES <= dv; d += 4 * LANES) {
        RT total[4];
        RV_UNROLL for (int i = 0; i < 4; i++) total[i] = R(set1)(0);
        for (int j = 0; j < nk; j++) RV_UNROLL for (int i = 0; i < 4; i++)
            total[i] = R(add)(total[i], R(load)(v + j * ldv + d + i * LANES));
        RV_UNROLL for (int i = 0; i < 4; i++) R(store)(sum + d + i * LANES, total[i]);
    }
    for (; d < dv; d += LANES) {
        const int n = dv - d < LANES ? (int)(dv - d) : LANES;
        RT total = R(set1)(0);
        for (int j = 0; j < nk; j++) {
            const REAL *at = v + j * ldv + d;
            total = R(add)(total, n < LANES ? R(load_n)(at, n) : R(load)(at));
        }
        R(store_n)(sum + d, total, n);
    }
}

/* Rows of dv + 1: weight[j] v[j], weight[j]; without weights they are 1. */
static void T(linear_weigh)(const void *v_, ptrdiff_t ldv, int nk, ptrdiff_t dv,
                            const void *weight_, void *out_)
{
    const REAL *v = v_, *weight = weight_;
    REAL *out = out_;
    for (int j = 0; j < nk; j++, v += ldv, out += dv + 1) {
        const RT w = R(set1)(weight ? weight[j] : 1);
        ptrdiff_t d = 0;
        for (; d + LANES <= dv; d += LANES) R(store)(out + d, R(mul)(w, R(load)(v + d)));
        if (d < dv) {
            const int n = (int)(dv - d);
            R(store_n)(out + d, R(mul)(w, R(load_n)(v + d, n)), n);
        }
        out[dv] = weight ? weight[j] : 1;
    }
}
