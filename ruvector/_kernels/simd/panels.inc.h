/* Rows into the panels of distances.inc.h, and distances back into the caller's matrix.
 * REAL, T, WIDE_*, LOW and HIGH as in rows.inc.h. */

static void T(pack_panel)(const void *x_, ptrdiff_t rows, ptrdiff_t dim, void *panel_)
{
    const REAL *x = x_;
    REAL *panel = panel_;
    for (int c = 0; c < RV_PANEL; c += LANES)
        for (ptrdiff_t d = 0; d < dim; d += LANES) {
            RT r[LANES];
            const int n = dim - d < LANES ? (int)(dim - d) : LANES;
            RV_UNROLL for (int i = 0; i < LANES; i++)
                r[i] = c + i < rows ? R(load_n)(x + (c + i) * dim + d, n) : R(set1)(0);
            R(transpose)(r);
            for (int i = 0; i < n; i++) R(store)(panel + (d + i) * RV_PANEL + c, r[i]);
        }
}

static int T(store_distances)(const double *s, ptrdiff_t lds, int rows, int cols, void *out_,
                              void *turned_, ptrdiff_t ldo)
{
    REAL *out = out_, *turned = turned_;
    const vd least = vd_set1(LOW), most = vd_set1(HIGH);
    vdm outside = vd_lt(least, least);
    for (int i = 0; i < rows; i += VD_LANES)
        for (int j = 0; j < cols; j += VD_LANES) {
            vd r[VD_LANES];
            const int m = rows - i < VD_LANES ? rows - i : VD_LANES;
            RV_UNROLL for (int k = 0; k < VD_LANES; k++) {
                const vd x = vd_load(s + (i + k) * lds + j);
                outside = vdm_or(outside, vdm_or(vd_lt(x, least), vd_lt(most, x)));
                r[k] = vd_sqrt(x);
                if (k < m) T(wide_store)(out + (i + k) * ldo + j, r[k], cols - j);
            }
            vd_transpose(r);
            RV_UNROLL for (int k = 0; k < VD_LANES; k++)
                if (j + k < cols) T(wide_store)(turned + (j + k) * ldo + i, r[k], rows - i);
        }
    return vdm_any(outside);
}
