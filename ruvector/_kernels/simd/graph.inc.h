/* GATv2 scores and sums over the edges of a graph, for one type of arithmetic.
 *
 *   s[e][h] = sum_c att[h][c] leaky(left_e[h][c] + right_e[h][c] + sum_d W[d][h][c] f_e[d])
 *   m' = max(m, max_e s),  p = 2^(s - m'),  l = 2^(m - m') l + sum_e p,
 *   o[h][c] = 2^(m - m') o[h][c] + sum_e p[e][h] left_e[h][c]
 *
 * Channels lie along the lanes, every head padded to whole vectors; left is read in place,
 * unpadded. EDGES edges by EDGE_VECS vectors are transformed together: their sums start as
 * left + right and stay in registers through W f, LeakyReLU and att, and the EDGES x EDGE_VECS
 * = LANES products that are left fill one transposing sum. For E edges: E De H C multiply-adds
 * from L1, and one pass over the rows of left that is repeated from L1 for o.
 *
 * Parameters as in softmax.inc.h.
 */

#include <string.h>

#define EDGES (LANES < 4 ? LANES : 4)
#define EDGE_VECS (LANES / EDGES)
#define SUM_VECS 8      /* vectors of o in registers */

/* dst = padded, row = unpadded (H, C); dst = scale * row + shift, shift padded or null */
static void T(graph_pad)(const rv_graph *g, const void *row_, double scale, const void *shift_,
                         void *dst_)
{
    const REAL *row = row_, *shift = shift_;
    REAL *dst = dst_;
    const RT factor = R(set1)((REAL)scale);
    for (int h = 0; h < g->heads; h++, row += g->channels)
        for (ptrdiff_t c = 0; c < g->channels; c += LANES, dst += LANES) {
            const ptrdiff_t rest = g->channels - c;
            RT x = rest < LANES ? R(load_n)(row + c, (int)rest) : R(load)(row + c);
            x = R(mul)(x, factor);
            if (shift) {
                x = R(add)(x, R(load)(shift));
                shift += LANES;
            }
            R(store)(dst, x);
        }
}

/* How padded rows, of whole vectors for each head, compare to unpadded ones. */
#define WHOLE 0  /* all lanes are channels: padded rows are like unpadded ones */
#define SINGLE 1 /* the same, and every head is one vector */
#define RAGGED 2 /* heads end within a vector */

typedef struct T(place) {
    ptrdiff_t at; /* in an unpadded row */
    int width, head, first;
} T(place);

static RV_INLINE T(place) T(place_of)(const rv_graph *g, ptrdiff_t v, const int KIND)
{
    T(place) p = {v * LANES, LANES, (int)v, 1};
    if (KIND != SINGLE) {
        p.head = (int)(v / g->vectors);
        const ptrdiff_t column = (v - (ptrdiff_t)p.head * g->vectors) * LANES;
        p.first = column == 0;
        if (KIND == RAGGED) {
            p.at = p.head * g->channels + column;
            if (g->channels - column < LANES) p.width = (int)(g->channels - column);
        }
    }
    return p;
}

/* Vector v + c of the row of a sender. */
static RV_INLINE RT T(load_left)(const REAL *left, ptrdiff_t v, int c, T(place) p,
                                 const int KIND)
{
    if (KIND != RAGGED) return R(load)(left + v * LANES + c * LANES);
    return p.width < LANES ? R(load_n)(left + p.at, p.width) : R(load)(left + p.at);
}

/* Sum VECS vectors of products of EDGES edges into s[e][lds] for the first n. */
static RV_INLINE void T(sum_products)(const RT product[LANES], const T(place) *at, int n,
                                      ptrdiff_t v, REAL *s, ptrdiff_t lds, const int VECS,
                                      const int KIND)
{
    REAL sum[LANES];
    R(store)(sum, R(sum_each)(product));
    for (int e = 0; e < n; e++, s += lds) {
        if (KIND == SINGLE) {
            memcpy(s + v, sum + e * EDGE_VECS, VECS * sizeof(REAL));
            continue;
        }
        RV_UNROLL for (int c = 0; c < VECS; c++)
            s[at[c].head] = sum[e * EDGE_VECS + c] + (at[c].first ? 0 : s[at[c].head]);
    }
}

/* Scores of EDGES edges from VECS vectors, and u[e], what LeakyReLU is applied to, unless it
 * is null. */
static RV_INLINE void T(score_tile)(const rv_graph *g, const rv_edge *const *edge, int n,
                                    ptrdiff_t v, REAL *s, ptrdiff_t lds, REAL *u,
                                    const int VECS, const int KIND)
{
    RT x[EDGES][EDGE_VECS], product[LANES];
    T(place) at[EDGE_VECS];
    const REAL *f[EDGES];
    const ptrdiff_t ldw = (ptrdiff_t)g->heads * g->vectors * LANES;
    const REAL *w = (const REAL *)g->weight + v * LANES;
    const REAL *att = (const REAL *)g->att + v * LANES;
    const RT slope = R(set1)((REAL)g->slope), zero = R(set1)(0);
    RV_UNROLL for (int c = 0; c < VECS; c++) at[c] = T(place_of)(g, v + c, KIND);
    RV_UNROLL for (int e = 0; e < EDGES; e++) {
        const REAL *right = (const REAL *)edge[e]->right + v * LANES;
        f[e] = edge[e]->features;
        RV_UNROLL for (int c = 0; c < VECS; c++)
            x[e][c] = R(add)(T(load_left)(edge[e]->left, v, c, at[c], KIND),
                             R(load)(right + c * LANES));
    }
    for (ptrdiff_t d = 0; d < g->edge_dim; d++, w += ldw) {
        RT y[EDGE_VECS];
        RV_UNROLL for (int c = 0; c < VECS; c++) y[c] = R(load)(w + c * LANES);
        RV_UNROLL for (int e = 0; e < EDGES; e++) {
            const RT z = R(set1)(f[e][d]);
            RV_UNROLL for (int c = 0; c < VECS; c++) x[e][c] = R(fma)(z, y[c], x[e][c]);
        }
    }
    if (u) {
        RV_UNROLL for (int e = 0; e < EDGES; e++) {
            if (e >= n) continue;
            RV_UNROLL for (int c = 0; c < VECS; c++)
                R(store)(u + e * ldw + (v + c) * LANES, x[e][c]);
        }
    }
    RV_UNROLL for (int i = 0; i < LANES; i++) product[i] = zero;
    RV_UNROLL for (int c = 0; c < VECS; c++) {
        const RT a = R(load)(att + c * LANES);
        RV_UNROLL for (int e = 0; e < EDGES; e++) {
            RT y = x[e][c];
            y = R(select)(R(lt)(y, zero), R(mul)(slope, y), y);
            product[e * EDGE_VECS + c] = R(mul)(a, y);
        }
    }
    T(sum_products)(product, at, n, v, s, lds, VECS, KIND);
}

static RV_INLINE void T(score_edges)(const rv_graph *g, const rv_edge *edges, int n, REAL *s,
                                     ptrdiff_t lds, REAL *u, const int KIND)
{
    const ptrdiff_t vectors = (ptrdiff_t)g->heads * g->vectors;
    const ptrdiff_t bytes = g->heads * g->channels * (ptrdiff_t)sizeof(REAL);
    const ptrdiff_t feature_bytes = g->edge_dim * (ptrdiff_t)sizeof(REAL);
    for (int e = 0; e < n; e += EDGES, s += EDGES * lds) {
        const rv_edge *edge[EDGES];
        const int rows = n - e < EDGES ? n - e : EDGES;
        ptrdiff_t v = 0;
        for (int i = 0; i < EDGES; i++) {
            edge[i] = edges + e + (i < rows ? i : 0);
            for (ptrdiff_t b = 0; b < bytes; b += 64)
                RV_PREFETCH((const char *)edge[i]->ahead + b);
            /* Features lie one after the other: those of the next block of as many edges. */
            for (ptrdiff_t b = 0; b < feature_bytes; b += 64)
                RV_PREFETCH((const char *)edge[i]->features + n * feature_bytes + b);
        }
        for (; v + EDGE_VECS <= vectors; v += EDGE_VECS)
            T(score_tile)(g, edge, rows, v, s, lds, u, EDGE_VECS, KIND);
        for (; v < vectors; v++) T(score_tile)(g, edge, rows, v, s, lds, u, 1, KIND);
        if (u) u += EDGES * vectors * LANES;
    }
}

static RV_INLINE int T(kind_of)(const rv_graph *g)
{
    return g->channels % LANES ? RAGGED : g->vectors == 1 ? SINGLE : WHOLE;
}

/* s[e][lds] of n edges */
static void T(graph_scores)(const rv_graph *g, const rv_edge *edges, int n, void *s,
                            ptrdiff_t lds)
{
    const int kind = T(kind_of)(g);
    if (kind == SINGLE) T(score_edges)(g, edges, n, s, lds, NULL, SINGLE);
    else if (kind == WHOLE) T(score_edges)(g, edges, n, s, lds, NULL, WHOLE);
    else T(score_edges)(g, edges, n, s, lds, NULL, RAGGED);
}

/* o = fall o + sum_e p left for VECS vectors; o = sum_e p left where it is the first; fall is 1
 * where it is null */
static RV_INLINE void T(sum_block)(const rv_graph *g, const rv_edge *edges, int n,
                                   const REAL *p, ptrdiff_t lds, const REAL *fall, ptrdiff_t v,
                                   REAL *o, int first, const int VECS, const int KIND)
{
    RT acc[SUM_VECS];
    T(place) at[SUM_VECS];
    RV_UNROLL for (int c = 0; c < VECS; c++) {
        at[c] = T(place_of)(g, v + c, KIND);
        acc[c] = R(set1)(0);
    }
    if (!first)
        RV_UNROLL for (int c = 0; c < VECS; c++)
            acc[c] = R(mul)(R(set1)(fall ? fall[at[c].head] : 1), R(load)(o + (v + c) * LANES));
    for (int e = 0; e < n; e++, p += lds) {
        const REAL *left = edges[e].left;
        RV_UNROLL for (int c = 0; c < VECS; c++)
            acc[c] = R(fma)(R(set1)(KIND == SINGLE ? (p + v)[c] : p[at[c].head]),
                            T(load_left)(left, v, c, at[c], KIND), acc[c]);
    }
    RV_UNROLL for (int c = 0; c < VECS; c++) R(store)(o + (v + c) * LANES, acc[c]);
}

static RV_INLINE void T(sum_edges)(const rv_graph *g, const rv_edge *edges, int n,
                                   const REAL *p, ptrdiff_t lds, const REAL *fall, REAL *o,
                                   int first, const int KIND)
{
    const ptrdiff_t vectors = (ptrdiff_t)g->heads * g->vectors;
    ptrdiff_t v = 0;
    for (; v + SUM_VECS <= vectors; v += SUM_VECS)
        T(sum_block)(g, edges, n, p, lds, fall, v, o, first, SUM_VECS, KIND);
    for (; v + 2 <= vectors; v += 2)
        T(sum_block)(g, edges, n, p, lds, fall, v, o, first, 2, KIND);
    for (; v < vectors; v++) T(sum_block)(g, edges, n, p, lds, fall, v, o, first, 1, KIND);
}

/* Fold n scored edges of one receiver into its state, or start that; s becomes p. m, l and
 * fall are as long as a row of s, which holds whole vectors of heads. */
static void T(graph_update)(const rv_graph *g, const rv_edge *edges, int n, void *s_,
                            ptrdiff_t lds, void *m_, void *l_, void *fall_, void *o, int first)
{
    REAL *s = s_, *m = m_, *l = l_, *fall = fall_;
    for (int h = 0; h < g->heads; h += LANES) {
        const RT before = first ? R(set1)(LOWEST) : R(load)(m + h);
        RT top = before, sum = R(set1)(0);
        for (int e = 0; e < n; e++) top = R(max)(R(load)(s + e * lds + h), top);
        if (!first) {
            const RT factor = R(exp2)(R(sub)(before, top));
            R(store)(fall + h, factor);
            sum = R(mul)(R(load)(l + h), factor);
        }
        for (int e = 0; e < n; e++) {
            const RT p = R(exp2)(R(sub)(R(load)(s + e * lds + h), top));
            R(store)(s + e * lds + h, p);
            sum = R(add)(sum, p);
        }
        R(store)(m + h, top);
        R(store)(l + h, sum);
    }
    const int kind = T(kind_of)(g);
    if (kind == SINGLE) T(sum_edges)(g, edges, n, s, lds, fall, o, first, SINGLE);
    else if (kind == WHOLE) T(sum_edges)(g, edges, n, s, lds, fall, o, first, WHOLE);
    else T(sum_edges)(g, edges, n, s, lds, fall, o, first, RAGGED);
}

/* sums[d] += sum_e features_e[d]: at most a block of edges in one chain of reals */
static void T(graph_count)(const rv_graph *g, const rv_edge *edges, int n, double *sums)
{
    for (ptrdiff_t d = 0; d < g->edge_dim; d += LANES) {
        const int w = g->edge_dim - d < LANES ? (int)(g->edge_dim - d) : LANES;
        REAL part[LANES];
        RT sum = R(set1)(0);
        for (int e = 0; e < n; e++) {
            const REAL *f = (const REAL *)edges[e].features + d;
            sum = R(add)(sum, w < LANES ? R(load_n)(f, w) : R(load)(f));
        }
        R(store)(part, sum);
        for (int i = 0; i < w; i++) sums[d + i] += part[i];
    }
}

/* One row of the output, and L of its heads; message, bias and lse may be null. */
static void T(graph_finish)(const rv_graph *g, const void *m_, const void *l_, const void *o_,
                            const void *message_, const void *bias_, int average,
                            int accumulate, void *out_, void *lse_)
{
    const REAL *m = m_, *l = l_, *message = message_, *bias = bias_;
    REAL *out = out_, *lse = lse_;
    const ptrdiff_t ldo = (ptrdiff_t)g->vectors * LANES;
    const int rows = average ? 1 : g->heads, summed = average ? g->heads : 1;
    for (int r = 0; r < rows; r++)
        for (ptrdiff_t c = 0; c < g->channels; c += LANES) {
            const int w = g->channels - c < LANES ? (int)(g->channels - c) : LANES;
            const ptrdiff_t at = r * g->channels + c;
            RT x = R(set1)(0);
            for (int h = r; h < r + summed; h++) {
                if (l[h] == 0) continue;
                const REAL *o = (const REAL *)o_ + h * ldo + c;
                x = R(fma)(R(load)(o), R(set1)(1 / l[h]), x);
                if (message) x = R(add)(x, R(load_n)(message + h * g->channels + c, w));
            }
            if (average) x = R(mul)(x, R(set1)(1 / (REAL)g->heads));
            if (bias) x = R(add)(x, R(load_n)(bias + at, w));
            if (accumulate) x = R(add)(x, R(load_n)(out + at, w));
            R(store_n)(out + at, x, w);
        }
    if (lse)
        for (int h = 0; h < g->heads; h++) lse[h] = T(natural_lse)(m[h], l[h]);
}

#include "graph_backward.inc.h"

#undef EDGES
#undef EDGE_VECS
#undef SUM_VECS
#undef WHOLE
#undef SINGLE
#undef RAGGED
