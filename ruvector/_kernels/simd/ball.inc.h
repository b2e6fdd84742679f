/* Distances in the Poincare ball as a score epilogue, for one type of arithmetic.
 *
 *   d(x, y) = 2/sqrt(c) asinh( sqrt( c |x - y|^2 a(x) a(y) ) ),   a(x) = 1/(1 - c |x|^2)
 *
 * (Ganea et al. 2018, arXiv 1805.09112.) |x - y|^2 comes from the dot product, at the speed
 * of the plain score tile; where it is below a quarter of |x|^2 + |y|^2, so that cancellation
 * could cost more than two bits, it is summed from differences instead. Keys are y = alpha k:
 * the map into the ball is a factor for each row (rv_ball_rows), k itself is read in place.
 * Parameters as in softmax.inc.h.
 */

/* log2(1 + u) for u >= 0, by 2 atanh(f/(2 + f)), f = m - 1 after 1 + u = 2^e m. Small u are
 * taken as f themselves, so that the result keeps its relative accuracy down to 0. */
static RV_INLINE RT T(log2p1)(RT u)
{
    const RT one = R(set1)(1), two = R(set1)(2);
    const RT w = R(add)(one, u);
    RT m, e = R(split)(w, &m);
    const RM high = R(lt)(R(set1)((REAL)1.41421356237309505), m);
    m = R(select)(high, R(mul)(m, R(set1)((REAL)0.5)), m);
    e = R(select)(high, R(add)(e, one), e);
    const RM small = R(lt)(u, R(set1)((REAL)0.41421356237309505));
    const RT f = R(select)(small, u, R(sub)(m, one));
    e = R(select)(small, R(set1)(0), e);
    const RT t = R(div)(f, R(add)(two, f)), t2 = R(mul)(t, t);
    /* 2 atanh(t)/t = 2 (1 + t^2/3 + t^4/5 + ...), |t| <= 0.172 */
    RT p = R(set1)((REAL)(2.0 / 13));
    if (sizeof(REAL) == 8) {
        p = R(set1)((REAL)(2.0 / 25));
        p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 23)));
        p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 21)));
        p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 19)));
        p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 17)));
        p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 15)));
        p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 13)));
    }
    p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 11)));
    p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 9)));
    p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 7)));
    p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 5)));
    p = R(fma)(p, t2, R(set1)((REAL)(2.0 / 3)));
    p = R(fma)(p, t2, two);
    return R(fma)(R(mul)(t, p), R(set1)((REAL)1.44269504088896340736), e);
}

/* log2(e) asinh(sqrt(z2)), asinh(z) = log(1 + z + z^2/(1 + sqrt(1 + z^2))) */
static RV_INLINE RT T(asinh_root)(RT z2)
{
    const RT one = R(set1)(1);
    const RT root = R(sqrt)(R(add)(one, z2));
    return T(log2p1)(R(add)(R(sqrt)(z2), R(div)(z2, R(add)(one, root))));
}

/* The factors of n rows; zeros behind them to the next multiple of LANES. */
static void T(ball_rows)(const double *square_norm, int n, double curvature, int tangent,
                         rv_ball_rows *rows)
{
    const double root = sqrt(curvature), limit = fmax(1 / root - 1e-5, 0);
    REAL *alpha = rows->alpha, *norm2 = rows->norm2, *a = rows->a;
    REAL *weight = rows->weight, *excess = rows->excess;
    for (int j = 0; j < n; j++) {
        double r = sqrt(square_norm[j]), factor = 1, inside;
        const double t = root * r;
        if (tangent && r > 0) factor = tanh(t) / t;
        if (r * factor > limit) factor = limit / r;
        else if (tangent && r > 0) {
            /* 1 - tanh^2 = 1/cosh^2 does not cancel */
            const double c = cosh(t);
            r *= factor;
            alpha[j] = (REAL)factor;
            norm2[j] = (REAL)(r * r);
            a[j] = (REAL)(c * c);
            weight[j] = (REAL)(2 * c * c * factor);
            excess[j] = (REAL)(2 * c * c - 1);
            continue;
        }
        r *= factor;
        inside = 1 - curvature * r * r;
        alpha[j] = (REAL)factor;
        norm2[j] = (REAL)(r * r);
        a[j] = (REAL)(1 / inside);
        weight[j] = (REAL)(2 / inside * factor);
        excess[j] = (REAL)(2 / inside - 1);
    }
    for (int j = n; j % LANES; j++) alpha[j] = norm2[j] = a[j] = weight[j] = excess[j] = 0;
}

/* |x - y|^2 between every lane and one key */
static RV_NOINLINE void T(square_differences)(const REAL *qt, int cols, const REAL *k,
                                              REAL alpha, ptrdiff_t dim, REAL *out)
{
    for (int c = 0; c < cols; c += LANES) {
        RT sum = R(set1)(0);
        for (ptrdiff_t d = 0; d < dim; d++) {
            RT x = R(sub)(R(load)(qt + d * cols + c), R(set1)(alpha * k[d]));
            sum = R(fma)(x, x, sum);
        }
        R(store)(out + c, sum);
    }
}

/* |x - y|^2 between every lane and key j, dot[cols] = k[j] . qt */
static RV_INLINE void T(ball_squares)(const REAL *dot, const void *qt, int cols, const REAL *k,
                                      ptrdiff_t dim, const rv_ball_rows *queries,
                                      const rv_ball_rows *keys, int j, REAL *out)
{
    const REAL alpha = ((const REAL *)keys->alpha)[j];
    const RT twice = R(set1)(-2 * alpha), kn = R(set1)(((const REAL *)keys->norm2)[j]);
    const RT quarter = R(set1)((REAL)0.25);
    int repair = 0;
    for (int c = 0; c < cols; c += LANES) {
        RT sum = R(add)(R(load)((const REAL *)queries->norm2 + c), kn);
        RT d2 = R(fma)(twice, R(load)(dot + c), sum);
        repair |= R_MASK(any)(R(lt)(d2, R(mul)(quarter, sum)));
        R(store)(out + c, d2);
    }
    if (repair) T(square_differences)(qt, cols, k, alpha, dim, out);
}

/* s[j][cols] -= scale log2(e) asinh(...), dot[j][cols] = k[j] . qt; scale = 2/sqrt(c) times
 * what a distance counts */
static void T(ball_scores)(void *s_, const void *dot_, const void *qt, int cols, const void *k,
                           ptrdiff_t ldk, int nk, ptrdiff_t dim, const rv_ball_rows *queries,
                           const rv_ball_rows *keys, double curvature, double scale)
{
    REAL *s = s_, squares[RV_VECS * LANES];
    const REAL *dot = dot_, *a = keys->a;
    const RT c2 = R(set1)((REAL)curvature);
    const RT minus = R(set1)((REAL)-scale), zero = R(set1)(0);
    for (int j = 0; j < nk; j++) {
        const RT ka = R(mul)(c2, R(set1)(a[j]));
        T(ball_squares)(dot + j * cols, qt, cols, (const REAL *)k + j * ldk, dim, queries, keys,
                        j, squares);
        for (int c = 0; c < cols; c += LANES) {
            RT z2 = R(mul)(R(max)(zero, R(load)(squares + c)),
                           R(mul)(ka, R(load)((const REAL *)queries->a + c)));
            REAL *at = s + j * cols + c;
            R(store)(at, R(fma)(minus, T(asinh_root)(z2), R(load)(at)));
        }
    }
}

/* What the gradient ds[j][cols] of the scores does through the distances, parameters as above:
 *
 *   g = -scale/2 ds / sqrt(u (1 + u))    u = c |x - y|^2 a(x) a(y)    h = 2 c g a(x) a(y)
 *
 * mass[cols] += sum_j h, pairs[cols] += sum_j g u, and ds[j] becomes h alpha_j, so that the
 * gradient is x (mass + 2 c a(x) pairs) - sum_j ds[j] k_j. Where `distance` is not null,
 * distance[cols] += log2(e) sum_j ds asinh(sqrt(u)). No gradient between equal points. */
static void T(ball_slopes)(void *ds_, const void *dot_, const void *qt, int cols, const void *k,
                           ptrdiff_t ldk, int nk, ptrdiff_t dim, const rv_ball_rows *queries,
                           const rv_ball_rows *keys, double curvature, double scale,
                           void *mass_, void *pairs_, void *distance_)
{
    REAL *ds = ds_, *mass = mass_, *pairs = pairs_, *distance = distance_;
    REAL squares[RV_VECS * LANES];
    const REAL *dot = dot_, *alpha = keys->alpha, *a = keys->a;
    const RT c2 = R(set1)((REAL)curvature), half = R(set1)((REAL)(-scale / 2));
    const RT zero = R(set1)(0), one = R(set1)(1), two = R(set1)(2);
    for (int j = 0; j < nk; j++) {
        const RT ka = R(mul)(c2, R(set1)(a[j])), factor = R(set1)(alpha[j]);
        T(ball_squares)(dot + j * cols, qt, cols, (const REAL *)k + j * ldk, dim, queries, keys,
                        j, squares);
        for (int c = 0; c < cols; c += LANES) {
            REAL *at = ds + j * cols + c;
            const RT x = R(load)(at);
            const RM nothing = R(eq)(x, zero);
            const RT both = R(mul)(ka, R(load)((const REAL *)queries->a + c));
            const RT u = R(mul)(R(max)(zero, R(load)(squares + c)), both);
            const RT root = R(sqrt)(u);
            const RT g = R(div)(R(mul)(half, x), R(sqrt)(R(add)(one, u)));
            RT h = R(mul)(R(div)(g, root), R(mul)(two, both));
            h = R(select)(R(eq)(root, zero), zero, R(select)(nothing, zero, h));
            const RT shared = R(select)(nothing, zero, R(mul)(g, root));
            R(store)(mass + c, R(add)(R(load)(mass + c), h));
            R(store)(pairs + c, R(add)(R(load)(pairs + c), shared));
            if (distance) {
                const RT d = R(select)(nothing, zero, R(mul)(x, T(asinh_root)(u)));
                R(store)(distance + c, R(add)(R(load)(distance + c), d));
            }
            R(store)(at, R(mul)(h, factor));
        }
    }
}

/* excess[cols] += sum_j p[j] (lambda_j - 1), then p[j] *= lambda_j alpha_j. Where `scores` is
 * not null a key whose score was -inf gets 0, whatever its lambda. */
static void T(ball_weigh)(void *p_, const void *scores_, int nk, int cols,
                          const rv_ball_rows *values, void *excess_)
{
    REAL *p = p_, *excess = excess_;
    const REAL *s = scores_, *weight = values->weight, *more = values->excess;
    const RT hidden = R(set1)(-(REAL)INFINITY), zero = R(set1)(0);
    for (int c = 0; c < cols; c += LANES) {
        RT sum = zero;
        for (int j = 0; j < nk; j++) {
            REAL *at = p + j * cols + c;
            RT x = R(load)(at), y = R(mul)(x, R(set1)(weight[j]));
            RT z = R(mul)(x, R(set1)(more[j]));
            if (s) {
                RM unseen = R(eq)(R(load)(s + j * cols + c), hidden);
                y = R(select)(unseen, zero, y);
                z = R(select)(unseen, zero, z);
            }
            sum = R(add)(sum, z);
            R(store)(at, y);
        }
        R(store)(excess + c, R(add)(R(load)(excess + c), sum));
    }
}

/* The same two over one query's row of keys: rows of q, scores and keys change places. d2
 * holds dot products and gets the squared distances; returns whether any needs differences,
 * and then `repair` marks them with 1. */
static int T(ball_row_squares)(void *d2_, int nk, const rv_ball_rows *query, int row,
                               const rv_ball_rows *keys, void *repair_)
{
    REAL *d2 = d2_, *repair = repair_;
    const REAL *alpha = keys->alpha, *norm2 = keys->norm2;
    const RT qn = R(set1)(((const REAL *)query->norm2)[row]), two = R(set1)(-2);
    int any = 0;
    for (int j = 0; j < nk; j += LANES) {
        RT sum = R(add)(qn, R(load)(norm2 + j));
        RT x = R(fma)(R(mul)(two, R(load)(alpha + j)), R(load)(d2 + j), sum);
        RM close = R(lt)(x, R(mul)(R(set1)((REAL)0.25), sum));
        R(store)(repair + j, R(select)(close, R(set1)(1), R(set1)(0)));
        any |= R_MASK(any)(close);
        R(store)(d2 + j, x);
    }
    return any;
}

static void T(ball_row_scores)(void *s_, const void *d2_, int nk, const rv_ball_rows *query,
                               int row, const rv_ball_rows *keys, double curvature,
                               double scale)
{
    REAL *s = s_;
    const REAL *d2 = d2_, *a = keys->a;
    const RT factor = R(set1)((REAL)curvature * ((const REAL *)query->a)[row]);
    const RT minus = R(set1)((REAL)-scale), zero = R(set1)(0);
    for (int j = 0; j < nk; j += LANES) {
        RT z2 = R(mul)(R(max)(zero, R(load)(d2 + j)), R(mul)(factor, R(load)(a + j)));
        R(store)(s + j, R(fma)(minus, T(asinh_root)(z2), R(load)(s + j)));
    }
}

static void T(ball_row_weigh)(void *p_, const void *scores_, int nk, const rv_ball_rows *values,
                              void *excess_)
{
    REAL *p = p_, *excess = excess_;
    const REAL *s = scores_, *weight = values->weight, *more = values->excess;
    const RT hidden = R(set1)(-(REAL)INFINITY), zero = R(set1)(0);
    RT sum = zero;
    for (int j = 0; j < nk; j += LANES) {
        RT x = R(load)(p + j), y = R(mul)(x, R(load)(weight + j));
        RT z = R(mul)(x, R(load)(more + j));
        if (s) {
            RM unseen = R(eq)(R(load)(s + j), hidden);
            y = R(select)(unseen, zero, y);
            z = R(select)(unseen, zero, z);
        }
        sum = R(add)(sum, z);
        R(store)(p + j, y);
    }
    *excess += R(sum)(sum);
}
