/* Squared distances of pairs of rows, as sums of squared differences.
 *
 * Rows lie across the lanes: a panel is RV_PANEL rows, turned, panel[d][RV_PANEL], and one
 * copy of all rows in panels serves both sides. Two panels meet in register blocks of
 * RV_REST_BLOCK rows of one by all of the other, an element at the price of a subtraction
 * and a multiply-add. Doubles are summed as they come; floats in float over RV_BRIEF
 * elements of a row, and these sums in double.
 */
#define RV_PANEL (RV_VECS * VD_LANES)
#define RV_BRIEF 16

/* s[i][j] += sum over d of (a[d][i] - b[d][j])^2 */
static void RV_NAME(f64, add_distances)(const void *a_, const void *b_, ptrdiff_t dim,
                                        double *s, ptrdiff_t lds)
{
    for (int start = 0; start < RV_PANEL; start += RV_REST_BLOCK, s += RV_REST_BLOCK * lds) {
        const double *a = (const double *)a_ + start, *b = b_;
        vd sum[RV_REST_BLOCK][RV_VECS];
        RV_UNROLL for (int i = 0; i < RV_REST_BLOCK; i++)
            RV_UNROLL for (int v = 0; v < RV_VECS; v++)
                sum[i][v] = vd_load(s + i * lds + v * VD_LANES);
        for (ptrdiff_t d = 0; d < dim; d++, a += RV_PANEL, b += RV_PANEL) {
            vd y[RV_VECS];
            RV_UNROLL for (int v = 0; v < RV_VECS; v++) y[v] = vd_load(b + v * VD_LANES);
            RV_UNROLL for (int i = 0; i < RV_REST_BLOCK; i++) {
                const vd x = vd_set1(a[i]);
                RV_UNROLL for (int v = 0; v < RV_VECS; v++) {
                    const vd t = vd_sub(y[v], x);
                    sum[i][v] = vd_fma(t, t, sum[i][v]);
                }
            }
        }
        RV_UNROLL for (int i = 0; i < RV_REST_BLOCK; i++)
            RV_UNROLL for (int v = 0; v < RV_VECS; v++)
                vd_store(s + i * lds + v * VD_LANES, sum[i][v]);
    }
}

static void RV_NAME(f32, add_distances)(const void *a_, const void *b_, ptrdiff_t dim,
                                        double *s, ptrdiff_t lds)
{
    enum { VECS = RV_PANEL / VF_LANES, PARTS = VF_LANES / VD_LANES };
    for (int start = 0; start < RV_PANEL; start += RV_REST_BLOCK, s += RV_REST_BLOCK * lds) {
        const float *a = (const float *)a_ + start, *b = b_;
        vd sum[RV_REST_BLOCK][RV_VECS];
        RV_UNROLL for (int i = 0; i < RV_REST_BLOCK; i++)
            RV_UNROLL for (int v = 0; v < RV_VECS; v++)
                sum[i][v] = vd_load(s + i * lds + v * VD_LANES);
        for (ptrdiff_t d = 0; d < dim; d += RV_BRIEF) {
            const int count = dim - d < RV_BRIEF ? (int)(dim - d) : RV_BRIEF;
            vf brief[RV_REST_BLOCK][VECS];
            RV_UNROLL for (int i = 0; i < RV_REST_BLOCK; i++)
                RV_UNROLL for (int v = 0; v < VECS; v++) brief[i][v] = vf_set1(0);
            for (int k = 0; k < count; k++, a += RV_PANEL, b += RV_PANEL) {
                vf y[VECS];
                RV_UNROLL for (int v = 0; v < VECS; v++) y[v] = vf_load(b + v * VF_LANES);
                RV_UNROLL for (int i = 0; i < RV_REST_BLOCK; i++) {
                    const vf x = vf_set1(a[i]);
                    RV_UNROLL for (int v = 0; v < VECS; v++) {
                        const vf t = vf_sub(y[v], x);
                        brief[i][v] = vf_fma(t, t, brief[i][v]);
                    }
                }
            }
            RV_UNROLL for (int i = 0; i < RV_REST_BLOCK; i++)
                RV_UNROLL for (int v = 0; v < RV_VECS; v++)
                    sum[i][v] = vd_add(sum[i][v], vf_widen(brief[i][v / PARTS], v % PARTS));
        }
        RV_UNROLL for (int i = 0; i < RV_REST_BLOCK; i++)
            RV_UNROLL for (int v = 0; v < RV_VECS; v++)
                vd_store(s + i * lds + v * VD_LANES, sum[i][v]);
    }
}
