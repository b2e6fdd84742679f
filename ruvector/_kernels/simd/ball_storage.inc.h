/* What the ball's tiles read in one storage type. Parameters as in storage.inc.h. */

/* |x|^2 summed in double, in four chains or more: one would wait for its multiply-adds. */
static double S(exact_square_norm)(const ITEM *x, ptrdiff_t dim)
{
    enum { PARTS = LANES / VD_LANES };
    vd sums[2][PARTS];
    RV_UNROLL for (int p = 0; p < PARTS; p++) sums[0][p] = sums[1][p] = vd_set1(0);
    for (ptrdiff_t d = 0; d < dim; d += 2 * LANES)
        RV_UNROLL for (int i = 0; i < 2; i++) {
            const ptrdiff_t rest = dim - d - i * LANES;
            if (rest <= 0) break;
            const RT u = rest < LANES ? LOAD_N(x + d + i * LANES, (int)rest)
                                      : LOAD(x + d + i * LANES);
            RV_UNROLL for (int p = 0; p < PARTS; p++) {
                const vd w = WIDEN(u, p);
                sums[i][p] = vd_fma(w, w, sums[i][p]);
            }
        }
    double sum = 0;
    RV_UNROLL for (int p = 0; p < PARTS; p++) sum += vd_sum(vd_add(sums[0][p], sums[1][p]));
    return sum;
}

/* |x_j|^2, exact for a row near the boundary of the ball that will not be shortened: there
 * 1 - c |x|^2 magnifies the rounding of the sum. A curvature of 0 says that nobody will take
 * that difference. */
static void S(square_norms)(const void *x_, ptrdiff_t ld, int rows, ptrdiff_t dim,
                            double curvature, double *out)
{
    const ITEM *x = x_;
    const double root = sqrt(curvature), limit = (1 - 1e-5 * root) * (1 - 1e-5 * root);
    for (int j = 0; j < rows; j++, x += ld) {
        RT a = R(set1)(0), b = a;
        ptrdiff_t d = 0;
        for (; d + 2 * LANES <= dim; d += 2 * LANES) {
            RT u = LOAD(x + d), v = LOAD(x + d + LANES);
            a = R(fma)(u, u, a);
            b = R(fma)(v, v, b);
        }
        for (; d < dim; d += LANES) {
            RT u = dim - d < LANES ? LOAD_N(x + d, (int)(dim - d)) : LOAD(x + d);
            a = R(fma)(u, u, a);
        }
        out[j] = R(sum)(R(add)(a, b));
        const double near = out[j] * curvature;
        if (sizeof(REAL) == 4 && near > 0.5 && near < limit + 4e-6)
            out[j] = S(exact_square_norm)(x, dim);
    }
}

/* |x - alpha k|^2 */
static double S(square_difference)(const void *x_, const void *k_, double alpha, ptrdiff_t dim)
{
    const REAL *x = x_;
    const ITEM *k = k_;
    const RT minus = R(set1)((REAL)-alpha);
    RT sum = R(set1)(0);
    for (ptrdiff_t d = 0; d < dim; d += LANES) {
        const int n = dim - d < LANES ? (int)(dim - d) : LANES;
        RT u = n < LANES ? LOAD_N(k + d, n) : LOAD(k + d);
        u = R(fma)(minus, u, R(load)(x + d));
        sum = R(fma)(u, u, sum);
    }
    return R(sum)(sum);
}
