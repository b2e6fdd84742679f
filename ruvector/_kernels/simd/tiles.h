/* The table of single-threaded tiles that the Cython kernels call.
 *
 * One table per instruction set, filled from the templates *.inc.h over vec_<isa>.h; which
 * one runs is decided once, in table.c. Tiles know nothing of threads, Python or policy.
 *
 * The softmax takes scores in units of log2: the factor log2(e) is folded into the query when
 * it is packed, so that exp2 alone is needed. `real` is the type arithmetic is done in:
 * double for float64, float for the others. Buffers of reals that a tile shares with its
 * caller hold one query per lane: [row][cols], cols = 1 or RV_VECS vectors.
 */
#ifndef RV_TILES_H
#define RV_TILES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Queries and outputs have one of the first types. Keys and values may also be RV_I8, whole
 * numbers to be multiplied by a float32 factor a row, which belongs to the caller. */
typedef enum {
    RV_F32,
    RV_F64,
    RV_F16,
    RV_BF16,
    RV_NUM_DTYPES,
    RV_I8 = RV_NUM_DTYPES,
    RV_NUM_STORED
} rv_dtype;

/* Strides are in elements of the storage type, sizes in elements. */
typedef struct rv_softmax_tiles {
    int lanes;        /* queries in one vector */
    int cols;         /* queries in one tile: RV_VECS vectors */
    int key_tile;     /* keys in one tile at the most */
    int query_tiles;  /* tiles of queries that share one prepared tile of keys and values */
    int item;         /* bytes of one stored element */
    int real;         /* bytes of one real */

    /* qt[d][cols] = scale * rows[lane][d], dim + 1 rows of room; what is in qt is between
     * `pack` and `scores` */
    void (*pack)(const void *const *rows, int cols, ptrdiff_t dim, double scale, void *qt);
    /* Copy a tile of keys or values into the form `scores` and `accumulate` read; null where
     * they read the caller's memory in place. The copy's stride is `dim`. */
    void (*load_keys)(const void *k, ptrdiff_t ldk, int nk, ptrdiff_t dim, void *dst);
    void (*load_values)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dim, void *dst);
    /* x[row][dim] *= factors[row], for rows that were loaded as reals */
    void (*scale_rows)(void *x, int rows, ptrdiff_t dim, const float *factors);
    /* s[j][cols] = k[j] . qt */
    void (*scores)(const void *qt, int cols, const void *k, ptrdiff_t ldk, int nk, ptrdiff_t dim,
                   void *s);

    /* Score epilogues, each over s[nk][cols] in place. */
    void (*softcap)(void *s, int nk, int cols, double cap);
    /* s -= slope * |position - j|, position counted from the tile's first key */
    void (*alibi)(void *s, int nk, int cols, const void *slope, const void *position);
    /* s += unit * bias, or -inf where bias is -inf; row `lane` of the bias is rows[lane] */
    void (*add_bias)(void *s, int nk, int cols, const void *const *rows, ptrdiff_t key_stride,
                     double unit);
    /* s *= factor */
    void (*multiply)(void *s, int nk, int cols, double factor);
    /* s = -inf where mask is 0 */
    void (*hide_mask)(void *s, int nk, int cols, const void *const *rows, ptrdiff_t key_stride);
    /* s = -inf unless lower <= j < upper or j < sink, counted from the tile's first key */
    void (*hide_outside)(void *s, int nk, int cols, const void *lower, const void *upper,
                         const void *sink);

    /* Online softmax: m and l of each lane brought up to date, s becomes p, o[dv][cols] is
     * rescaled where a maximum rose. */
    void (*update)(void *s, int nk, int cols, void *m, void *l, void *o, ptrdiff_t dv);
    /* o[d][cols] += sum_j v[j][d] p[j] */
    void (*accumulate)(const void *p, int cols, const void *v, ptrdiff_t ldv, int nk,
                       ptrdiff_t dv, void *o);
    /* Is every value of the tile finite? */
    int (*all_finite)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dv);
    /* accumulate, but a key whose score was -inf adds nothing, not 0 * NaN */
    void (*accumulate_visible)(const void *p, const void *scores, int cols, const void *v,
                               ptrdiff_t ldv, int nk, ptrdiff_t dv, void *o);
    /* rows[lane] = o / l, *lse[lane] = natural logarithm of the sum; lse may be null */
    void (*finish)(const void *o, const void *m, const void *l, int cols, int rows,
                   ptrdiff_t dv, void *const *out, void *const *lse);
} rv_softmax_tiles;

/* Few queries: vectors lie along the head dimension, every key and value row is read once,
 * in memory order, for all the heads that lie side by side in it (`heads`, `head_stride`
 * apart) and all `group` query rows of each. Row r = head * group + g has its scores in
 * s[r][lds], its output in o[r][ldo]; both strides are multiples of `lanes`. */
typedef struct rv_decode_tiles {
    int lanes;
    int key_tile; /* keys in one tile at the most, a multiple of lanes */
    int item;
    int real;

    /* dst[0..ceil(dim / lanes) * lanes) = scale * row, zeros behind */
    void (*load_query)(const void *row, ptrdiff_t dim, double scale, void *dst);
    /* s[r][j] = k[j] . q[r]; -inf from nk up to the next multiple of lanes */
    void (*scores)(const void *q, ptrdiff_t ldq, const void *k, ptrdiff_t ldk,
                   ptrdiff_t head_stride, int nk, int heads, int group, ptrdiff_t dim, void *s,
                   ptrdiff_t lds);

    /* s[j] *= factors[j], for one row of nk scores or probabilities */
    void (*multiply)(void *s, int nk, const float *factors);
    /* Score epilogues over one row of nk scores, as those of rv_softmax_tiles. */
    void (*softcap)(void *s, int nk, double cap);
    void (*alibi)(void *s, int nk, double slope, double position);
    void (*add_bias)(void *s, int nk, const void *bias, ptrdiff_t key_stride, double unit);
    void (*hide_mask)(void *s, int nk, const void *mask, ptrdiff_t key_stride);
    void (*hide_outside)(void *s, int nk, double lower, double upper, double sink);

    void (*update)(void *s, ptrdiff_t lds, int rows, int nk, void *m, void *l, void *o,
                   ptrdiff_t ldo);
    /* Where `scores` is not null, a key whose score was -inf adds nothing, not 0 * NaN. */
    void (*accumulate)(const void *p, const void *scores, ptrdiff_t lds, const void *v,
                       ptrdiff_t ldv, ptrdiff_t head_stride, int nk, int heads, int group,
                       ptrdiff_t dv, void *o, ptrdiff_t ldo);
    int (*all_finite)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dv);
    /* Fold the state (m2, l2, o2) of other keys into (m, l, o). */
    void (*merge)(void *m, void *l, void *o, const void *m2, const void *l2, const void *o2,
                  ptrdiff_t dv);
    /* out = o / l, *lse = natural logarithm of the sum; lse may be null */
    void (*finish)(const void *m, const void *l, const void *o, ptrdiff_t dv, void *out,
                   void *lse);
    /* s = 2^(unit s - m) / l, n contiguous scores of the row's state. unit is 1 for scores in
     * units of log2, log2(e) for natural ones. */
    void (*probabilities)(void *s, ptrdiff_t n, double m, double l, double unit);
} rv_decode_tiles;

/* What the ball needs of rows x = factor * stored row: arrays of reals, one entry a row. */
typedef struct rv_ball_rows {
    void *alpha;  /* the factor that maps a stored row into the ball */
    void *norm2;  /* |x|^2 */
    void *a;      /* 1 / (1 - c |x|^2) */
    void *weight; /* lambda * alpha, lambda = 2 a: what a value's entries are summed with */
    void *excess; /* lambda - 1 */
} rv_ball_rows;

/* Distances in the Poincare ball and midpoints, beside either driver; simd/ball.inc.h. */
typedef struct rv_ball_tiles {
    /* Rows as reals, for what reads no other type; null where they are reals. */
    void (*load)(const void *x, ptrdiff_t ld, int rows, ptrdiff_t dim, void *dst);
    void (*square_norms)(const void *x, ptrdiff_t ld, int rows, ptrdiff_t dim,
                         double curvature, double *out);
    /* |x - alpha k|^2 of a row of reals and a stored row */
    double (*square_difference)(const void *x, const void *k, double alpha, ptrdiff_t dim);
    void (*rows)(const double *square_norm, int n, double curvature, int tangent,
                 rv_ball_rows *rows);
    /* Queries across the lanes. */
    void (*scores)(void *s, const void *dot, const void *qt, int cols, const void *k,
                   ptrdiff_t ldk, int nk, ptrdiff_t dim, const rv_ball_rows *queries,
                   const rv_ball_rows *keys, double curvature, double scale);
    void (*slopes)(void *ds, const void *dot, const void *qt, int cols, const void *k,
                   ptrdiff_t ldk, int nk, ptrdiff_t dim, const rv_ball_rows *queries,
                   const rv_ball_rows *keys, double curvature, double scale, void *mass,
                   void *pairs, void *distance);
    void (*weigh)(void *p, const void *scores, int nk, int cols, const rv_ball_rows *values,
                  void *excess);
    /* Keys across the lanes, row `row` of the queries. */
    int (*row_squares)(void *d2, int nk, const rv_ball_rows *query, int row,
                       const rv_ball_rows *keys, void *repair);
    void (*row_scores)(void *s, const void *d2, int nk, const rv_ball_rows *query, int row,
                       const rv_ball_rows *keys, double curvature, double scale);
    void (*row_weigh)(void *p, const void *scores, int nk, const rv_ball_rows *values,
                      void *excess);
} rv_ball_tiles;

/* The gradient of the softmax, beside the tiles of rv_softmax_tiles; simd/backward.inc.h. */
typedef struct rv_backward_tiles {
    double (*row_dot)(const void *a, const void *b, ptrdiff_t n);
    void (*exp)(void *s, int rows, int cols, const void *lse, int by_row);
    void (*scores)(const void *p, void *dp, int rows, int cols, const void *d, int by_row);
    void (*softcap)(void *ds, const void *s, int rows, int cols, double cap);
    void (*alibi)(const void *ds, int rows, int cols, const void *position, void *sum);
} rv_backward_tiles;

/* One edge of a graph: the sender's row, the receiver's (padded), its features, and the row
 * of a sender that is wanted a block later. */
typedef struct rv_edge {
    const void *left, *right, *features, *ahead;
} rv_edge;

/* L and D of the receiver of an edge, a number for each head. */
typedef struct rv_edge_state {
    const void *lse, *delta;
} rv_edge_state;

/* How edges are scored; a padded row holds `vectors` whole vectors for each head. */
typedef struct rv_graph {
    int heads, vectors;
    ptrdiff_t channels, edge_dim;
    const void *att;    /* a padded row */
    const void *weight; /* edge_dim padded rows */
    double slope;
} rv_graph;

/* Attention along edges, for float and double; simd/graph.inc.h. */
typedef struct rv_graph_tiles {
    int lanes, real;
    void (*pad)(const rv_graph *g, const void *row, double scale, const void *shift,
                void *dst);
    /* s[e][lds], lds at least the heads in whole vectors; then p, and the state m, l, o, which
     * is not read where it is the first of its receiver. */
    void (*scores)(const rv_graph *g, const rv_edge *edges, int n, void *s, ptrdiff_t lds);
    void (*update)(const rv_graph *g, const rv_edge *edges, int n, void *s, ptrdiff_t lds,
                   void *m, void *l, void *fall, void *o, int first);
    void (*count)(const rv_graph *g, const rv_edge *edges, int n, double *sums);
    void (*finish)(const rv_graph *g, const void *m, const void *l, const void *o,
                   const void *message, const void *bias, int average, int accumulate,
                   void *out, void *lse);

    /* The gradient, where either end of an edge may be the row that is summed into: `right`
     * of rv_edge, a padded row, as u[e] are; simd/graph_backward.inc.h. Natural scores. */
    void (*transforms)(const rv_graph *g, const rv_edge *edges, int n, void *u, void *s,
                       ptrdiff_t lds);
    void (*dots)(const rv_graph *g, const rv_edge *edges, int n, void *t, ptrdiff_t lds);
    void (*weigh)(const rv_graph *g, const rv_edge_state *states, int n, void *s, void *t,
                  ptrdiff_t lds);
    void (*differentiate)(const rv_graph *g, int n, void *u, const void *ds, ptrdiff_t lds,
                          void *own, void *att);
    void (*accumulate)(const rv_graph *g, const rv_edge *edges, int n, const void *p,
                       ptrdiff_t lds, void *o);
} rv_graph_tiles;

/* Rows turned by the angles in row positions[j] of the table; `neighbours` is the layout of
 * pairs; simd/rotary.inc.h. */
typedef struct rv_rotary_tiles {
    /* out[j][h][dim] = row x[j] of head h, turned, as reals */
    void (*rotate)(const void *x, ptrdiff_t ld, ptrdiff_t head_stride, int rows, int heads,
                   ptrdiff_t dim, const int64_t *positions, const void *table, int neighbours,
                   void *out);
    /* `scores` of rv_decode_tiles over keys that are turned on the way */
    void (*scores)(const void *q, ptrdiff_t ldq, const void *k, ptrdiff_t ldk,
                   ptrdiff_t head_stride, int nk, int heads, int group, ptrdiff_t dim,
                   const int64_t *positions, const void *table, int neighbours, void *s,
                   ptrdiff_t lds);
} rv_rotary_tiles;

/* Linear attention over reals, beside the tiles of rv_softmax_tiles; simd/linear.inc.h. */
typedef struct rv_linear_tiles {
    void (*subtract)(void *s, int nk, int cols, const void *h);
    void (*activate)(void *s, int nk, int cols, int elu, double epsilon, const void *factor,
                     void *sum);
    void (*row_maxima)(const void *s, int nk, int cols, void *top);
    void (*mix)(void *o, ptrdiff_t rows, int cols, const void *factor, const void *share,
                const void *x);
    void (*causal)(void *p, int nk, int cols, const void *key_top, const void *top,
                   const void *share, const void *count, void *sum);
    void (*add_scores)(const void *qt, int cols, const void *k, ptrdiff_t ldk, int nk,
                       ptrdiff_t dim, void *s);
    void (*column_sums)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dv, void *sum);
    void (*weigh)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dv, const void *weight,
                  void *out);
} rv_linear_tiles;

/* Contiguous rows of float or double, for the vector utilities. Sums are in double; a `scale`
 * multiplies what is squared. `out` may be x itself. */
typedef struct rv_row_tiles {
    int panel;        /* rows in one panel */
    int real;         /* bytes of one element */
    double low, high; /* what add_distances sums is right between them */

    /* out = exp((x - max) / temperature) over its sum, or zeros where all x are -inf */
    void (*softmax)(const void *x, ptrdiff_t n, double temperature, void *out);
    /* x.x */
    double (*squares)(const void *x, ptrdiff_t n, double scale);
    /* sums = a.a, b.b, a.b */
    void (*products)(const void *a, const void *b, ptrdiff_t n, double scale_a, double scale_b,
                     double *sums);
    /* (a - b).(a - b) */
    double (*distance)(const void *a, const void *b, ptrdiff_t n, double scale);
    /* out = scale * x / divisor */
    void (*divide)(const void *x, ptrdiff_t n, double scale, double divisor, void *out);

    /* sums[j] += sum over rows of x[r][j] - center[j], or of its square. The doubles here and
     * in `standardize` have room up to the next multiple of `panel`. */
    void (*column_sums)(const void *x, int rows, ptrdiff_t n, const double *center,
                        double *sums);
    void (*column_squares)(const void *x, int rows, ptrdiff_t n, const double *center,
                           double *sums);
    /* out = (x - mean) * factor */
    void (*standardize)(const void *x, ptrdiff_t n, const double *mean, const double *factor,
                        void *out);

    /* dst[d][panel] = x[row][d], zeros from `rows` on */
    void (*pack_panel)(const void *x, ptrdiff_t rows, ptrdiff_t dim, void *dst);
    /* s[i][j] += sum over d of (a[d][i] - b[d][j])^2 for two panels */
    void (*add_distances)(const void *a, const void *b, ptrdiff_t dim, double *s,
                          ptrdiff_t lds);
    /* out[i][j] = turned[j][i] = sqrt(s[i][j]) for rows x cols of two panels. 0 if no s lies
     * outside [low, high], NaN aside; not 0 may also mean one behind rows or cols. */
    int (*store_distances)(const double *s, ptrdiff_t lds, int rows, int cols, void *out,
                           void *turned, ptrdiff_t ldo);
} rv_row_tiles;

/* Options of one step; simd/optim.inc.h has the formulas. */
typedef struct rv_sgd {
    double rate, decay, keep, share, momentum;
    int nesterov;
} rv_sgd;

typedef struct rv_adam {
    double rate, decay, shrink, beta1, beta2, root, epsilon;
} rv_adam;

/* Steps of optimisers over n contiguous floats or doubles, in place. */
typedef struct rv_optim_tiles {
    int real;
    /* b is null without momentum, peak without the running maximum of v */
    void (*sgd)(void *p, const void *g, void *b, ptrdiff_t n, const rv_sgd *options);
    void (*adam)(void *p, const void *g, void *m, void *v, void *peak, ptrdiff_t n,
                 const rv_adam *options);
} rv_optim_tiles;

typedef struct rv_table {
    const char *isa;
    const rv_softmax_tiles *softmax[RV_NUM_STORED];
    const rv_softmax_tiles *wide[RV_NUM_STORED]; /* what they load is reals */
    const rv_decode_tiles *decode[RV_NUM_STORED];
    const rv_ball_tiles *ball[RV_NUM_DTYPES];
    const rv_backward_tiles *backward[RV_NUM_DTYPES];
    const rv_graph_tiles *graph[2]; /* RV_F32, RV_F64 */
    const rv_row_tiles *rows[2];    /* RV_F32, RV_F64 */
    const rv_linear_tiles *linear[2];
    const rv_rotary_tiles *rotary[RV_NUM_DTYPES];
    const rv_optim_tiles *optim[2];

    /* A row of floats as whole numbers and their scale; 0 where one is not finite. */
    int (*quantize)(const float *x, ptrdiff_t n, int8_t *out, float *scale);
    /* Does any |x| lie in [low, high), given as the bits of floats? */
    int (*any_between)(const float *x, ptrdiff_t n, uint32_t low, uint32_t high);
} rv_table;

#ifdef __cplusplus
}
#endif
#endif
