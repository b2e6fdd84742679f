/* The gradient of GATv2 along edges, for one type of arithmetic; included by graph.inc.h.
 *
 *   p = e^(s - L),  t = dO . message,  ds = p (t - D),  du = ds att leaky'(u)
 *
 * One end of an edge is the row that is summed into, a padded row like `right` of the forward
 * pass; the other is read in place. Which of them is the receiver does not matter here.
 */

#define GRADIENT_VECS 4 /* vectors of sums in registers, twice */

/* u[e] as padded rows, and scores as graph_scores */
static void T(graph_transforms)(const rv_graph *g, const rv_edge *edges, int n, void *u,
                                void *s, ptrdiff_t lds)
{
    const int kind = T(kind_of)(g);
    if (kind == SINGLE) T(score_edges)(g, edges, n, s, lds, u, SINGLE);
    else if (kind == WHOLE) T(score_edges)(g, edges, n, s, lds, u, WHOLE);
    else T(score_edges)(g, edges, n, s, lds, u, RAGGED);
}

/* t[e][h] = left . right of VECS vectors */
static RV_INLINE void T(dot_tile)(const rv_graph *g, const rv_edge *const *edge, int n,
                                  ptrdiff_t v, REAL *t, ptrdiff_t ldt, const int VECS,
                                  const int KIND)
{
    RT product[LANES];
    T(place) at[EDGE_VECS];
    RV_UNROLL for (int i = 0; i < LANES; i++) product[i] = R(set1)(0);
    RV_UNROLL for (int c = 0; c < VECS; c++) at[c] = T(place_of)(g, v + c, KIND);
    RV_UNROLL for (int e = 0; e < EDGES; e++) {
        const REAL *right = (const REAL *)edge[e]->right + v * LANES;
        RV_UNROLL for (int c = 0; c < VECS; c++)
            product[e * EDGE_VECS + c] = R(mul)(
                T(load_left)(edge[e]->left, v, c, at[c], KIND), R(load)(right + c * LANES));
    }
    T(sum_products)(product, at, n, v, t, ldt, VECS, KIND);
}

static RV_INLINE void T(dot_edges)(const rv_graph *g, const rv_edge *edges, int n, REAL *t,
                                   ptrdiff_t ldt, const int KIND)
{
    const ptrdiff_t vectors = (ptrdiff_t)g->heads * g->vectors;
    const ptrdiff_t bytes = g->heads * g->channels * (ptrdiff_t)sizeof(REAL);
    for (int e = 0; e < n; e += EDGES, t += EDGES * ldt) {
        const rv_edge *edge[EDGES];
        const int rows = n - e < EDGES ? n - e : EDGES;
        ptrdiff_t v = 0;
        for (int i = 0; i < EDGES; i++) {
            edge[i] = edges + e + (i < rows ? i : 0);
            for (ptrdiff_t b = 0; b < bytes; b += 64)
                RV_PREFETCH((const char *)edge[i]->ahead + b);
        }
        for (; v + EDGE_VECS <= vectors; v += EDGE_VECS)
            T(dot_tile)(g, edge, rows, v, t, ldt, EDGE_VECS, KIND);
        for (; v < vectors; v++) T(dot_tile)(g, edge, rows, v, t, ldt, 1, KIND);
    }
}

static void T(graph_dots)(const rv_graph *g, const rv_edge *edges, int n, void *t,
                          ptrdiff_t ldt)
{
    const int kind = T(kind_of)(g);
    if (kind == SINGLE) T(dot_edges)(g, edges, n, t, ldt, SINGLE);
    else if (kind == WHOLE) T(dot_edges)(g, edges, n, t, ldt, WHOLE);
    else T(dot_edges)(g, edges, n, t, ldt, RAGGED);
}

/* s becomes p, at most 1 whatever rounding makes of s - L, and t ds; 0 where L is -inf, and ds
 * where p is 0 */
static void T(graph_weigh)(const rv_graph *g, const rv_edge_state *states, int n, void *s_,
                           void *t_, ptrdiff_t lds)
{
    REAL *s = s_, *t = t_;
    const RT unit = R(set1)((REAL)1.44269504088896340736), zero = R(set1)(0);
    const RT nothing = R(set1)(-(REAL)INFINITY);
    for (int e = 0; e < n; e++, s += lds, t += lds)
        for (int h = 0; h < g->heads; h += LANES) {
            const int w = g->heads - h < LANES ? g->heads - h : LANES;
            const RT lse = R(load_n)((const REAL *)states[e].lse + h, w);
            const RT delta = R(load_n)((const REAL *)states[e].delta + h, w);
            const RT gap = R(min)(zero, R(sub)(R(load)(s + h), lse));
            RT p = R(exp2)(R(mul)(unit, gap));
            p = R(select)(R(eq)(lse, nothing), zero, p);
            const RT ds = R(mul)(p, R(sub)(R(load)(t + h), delta));
            R(store)(s + h, p);
            R(store)(t + h, R(select)(R(eq)(p, zero), zero, ds));
        }
}

/* u becomes du, own += sum_e du, att += sum_e ds leaky(u) unless it is null: VECS vectors */
static RV_INLINE void T(gradient_block)(const rv_graph *g, int n, REAL *u, const REAL *ds,
                                        ptrdiff_t lds, ptrdiff_t v, REAL *own, REAL *att,
                                        const int VECS, const int ATT)
{
    RT sum[GRADIENT_VECS], turn[GRADIENT_VECS], up[GRADIENT_VECS], down[GRADIENT_VECS];
    int head[GRADIENT_VECS];
    const ptrdiff_t ldu = (ptrdiff_t)g->heads * g->vectors * LANES;
    const RT slope = R(set1)((REAL)g->slope), zero = R(set1)(0);
    RV_UNROLL for (int c = 0; c < VECS; c++) {
        head[c] = (int)((v + c) / g->vectors);
        up[c] = R(load)((const REAL *)g->att + (v + c) * LANES);
        down[c] = R(mul)(slope, up[c]);
        sum[c] = R(load)(own + (v + c) * LANES);
        turn[c] = ATT ? R(load)(att + (v + c) * LANES) : zero;
    }
    u += v * LANES;
    for (int e = 0; e < n; e++, u += ldu, ds += lds)
        RV_UNROLL for (int c = 0; c < VECS; c++) {
            const RT x = R(load)(u + c * LANES), d = R(set1)(ds[head[c]]);
            const RM below = R(lt)(x, zero);
            const RT du = R(mul)(d, R(select)(below, down[c], up[c]));
            if (ATT) turn[c] = R(fma)(d, R(select)(below, R(mul)(slope, x), x), turn[c]);
            sum[c] = R(add)(sum[c], du);
            R(store)(u + c * LANES, du);
        }
    RV_UNROLL for (int c = 0; c < VECS; c++) {
        R(store)(own + (v + c) * LANES, sum[c]);
        if (ATT) R(store)(att + (v + c) * LANES, turn[c]);
    }
}

static RV_INLINE void T(gradient_rows)(const rv_graph *g, int n, REAL *u, const REAL *ds,
                                       ptrdiff_t lds, REAL *own, REAL *att, const int ATT)
{
    const ptrdiff_t vectors = (ptrdiff_t)g->heads * g->vectors;
    ptrdiff_t v = 0;
    for (; v + GRADIENT_VECS <= vectors; v += GRADIENT_VECS)
        T(gradient_block)(g, n, u, ds, lds, v, own, att, GRADIENT_VECS, ATT);
    for (; v < vectors; v++) T(gradient_block)(g, n, u, ds, lds, v, own, att, 1, ATT);
}

static void T(graph_differentiate)(const rv_graph *g, int n, void *u, const void *ds,
                                   ptrdiff_t lds, void *own, void *att)
{
    if (att) T(gradient_rows)(g, n, u, ds, lds, own, att, 1);
    else T(gradient_rows)(g, n, u, ds, lds, own, NULL, 0);
}

/* o += sum_e p left */
static void T(graph_accumulate)(const rv_graph *g, const rv_edge *edges, int n, const void *p,
                                ptrdiff_t lds, void *o)
{
    const int kind = T(kind_of)(g);
    if (kind == SINGLE) T(sum_edges)(g, edges, n, p, lds, NULL, o, 0, SINGLE);
    else if (kind == WHOLE) T(sum_edges)(g, edges, n, p, lds, NULL, o, 0, WHOLE);
    else T(sum_edges)(g, edges, n, p, lds, NULL, o, 0, RAGGED);
}

#undef GRADIENT_VECS
