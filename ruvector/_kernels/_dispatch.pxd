"""The C table of single-threaded tiles; simd/tiles.h says what each one computes."""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int8_t, int64_t, uint32_t


cdef extern from "simd/tiles.h" nogil:
    ctypedef enum rv_dtype:
        RV_F32
        RV_F64
        RV_F16
        RV_BF16
        RV_I8

    ctypedef struct rv_softmax_tiles:
        int lanes, cols, key_tile, query_tiles, item, real
        void (*pack)(const void *const *rows, int cols, ptrdiff_t dim, double scale,
                     void *qt) noexcept nogil
        void (*load_keys)(const void *k, ptrdiff_t ldk, int nk, ptrdiff_t dim,
                          void *dst) noexcept nogil
        void (*load_values)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dim,
                            void *dst) noexcept nogil
        void (*scale_rows)(void *x, int rows, ptrdiff_t dim,
                           const float *factors) noexcept nogil
        void (*scores)(const void *qt, int cols, const void *k, ptrdiff_t ldk, int nk,
                       ptrdiff_t dim, void *s) noexcept nogil
        void (*softcap)(void *s, int nk, int cols, double cap) noexcept nogil
        void (*alibi)(void *s, int nk, int cols, const void *slope,
                      const void *position) noexcept nogil
        void (*add_bias)(void *s, int nk, int cols, const void *const *rows,
                         ptrdiff_t key_stride, double unit) noexcept nogil
        void (*multiply)(void *s, int nk, int cols, double factor) noexcept nogil
        void (*hide_mask)(void *s, int nk, int cols, const void *const *rows,
                          ptrdiff_t key_stride) noexcept nogil
        void (*hide_outside)(void *s, int nk, int cols, const void *lower, const void *upper,
                             const void *sink) noexcept nogil
        void (*update)(void *s, int nk, int cols, void *m, void *l, void *o,
                       ptrdiff_t dv) noexcept nogil
        void (*accumulate)(const void *p, int cols, const void *v, ptrdiff_t ldv, int nk,
                           ptrdiff_t dv, void *o) noexcept nogil
        int (*all_finite)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dv) noexcept nogil
        void (*accumulate_visible)(const void *p, const void *scores, int cols, const void *v,
                                   ptrdiff_t ldv, int nk, ptrdiff_t dv, void *o) noexcept nogil
        void (*finish)(const void *o, const void *m, const void *l, int cols, int rows,
                       ptrdiff_t dv, void *const *out, void *const *lse) noexcept nogil

    ctypedef struct rv_decode_tiles:
        int lanes, key_tile, item, real
        void (*load_query)(const void *row, ptrdiff_t dim, double scale,
                           void *dst) noexcept nogil
        void (*scores)(const void *q, ptrdiff_t ldq, const void *k, ptrdiff_t ldk,
                       ptrdiff_t head_stride, int nk, int heads, int group, ptrdiff_t dim,
                       void *s, ptrdiff_t lds) noexcept nogil
        void (*multiply)(void *s, int nk, const float *factors) noexcept nogil
        void (*softcap)(void *s, int nk, double cap) noexcept nogil
        void (*alibi)(void *s, int nk, double slope, double position) noexcept nogil
        void (*add_bias)(void *s, int nk, const void *bias, ptrdiff_t key_stride,
                         double unit) noexcept nogil
        void (*hide_mask)(void *s, int nk, const void *mask,
                          ptrdiff_t key_stride) noexcept nogil
        void (*hide_outside)(void *s, int nk, double lower, double upper,
                             double sink) noexcept nogil
        void (*update)(void *s, ptrdiff_t lds, int rows, int nk, void *m, void *l, void *o,
                       ptrdiff_t ldo) noexcept nogil
        void (*accumulate)(const void *p, const void *scores, ptrdiff_t lds, const void *v,
                           ptrdiff_t ldv, ptrdiff_t head_stride, int nk, int heads, int group,
                           ptrdiff_t dv, void *o, ptrdiff_t ldo) noexcept nogil
        int (*all_finite)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dv) noexcept nogil
        void (*merge)(void *m, void *l, void *o, const void *m2, const void *l2,
                      const void *o2, ptrdiff_t dv) noexcept nogil
        void (*finish)(const void *m, const void *l, const void *o, ptrdiff_t dv, void *out,
                       void *lse) noexcept nogil
        void (*probabilities)(void *s, ptrdiff_t n, double m, double l,
                              double unit) noexcept nogil

    ctypedef struct rv_ball_rows:
        void *alpha
        void *norm2
        void *a
        void *weight
        void *excess

    ctypedef struct rv_ball_tiles:
        void (*load)(const void *x, ptrdiff_t ld, int rows, ptrdiff_t dim,
                     void *dst) noexcept nogil
        void (*square_norms)(const void *x, ptrdiff_t ld, int rows, ptrdiff_t dim,
                             double curvature, double *out) noexcept nogil
        double (*square_difference)(const void *x, const void *k, double alpha,
                                    ptrdiff_t dim) noexcept nogil
        void (*rows)(const double *square_norm, int n, double curvature, int tangent,
                     rv_ball_rows *rows) noexcept nogil
        void (*scores)(void *s, const void *dot, const void *qt, int cols, const void *k,
                       ptrdiff_t ldk, int nk, ptrdiff_t dim, const rv_ball_rows *queries,
                       const rv_ball_rows *keys, double curvature,
                       double scale) noexcept nogil
        void (*slopes)(void *ds, const void *dot, const void *qt, int cols, const void *k,
                       ptrdiff_t ldk, int nk, ptrdiff_t dim, const rv_ball_rows *queries,
                       const rv_ball_rows *keys, double curvature, double scale, void *mass,
                       void *pairs, void *distance) noexcept nogil
        void (*weigh)(void *p, const void *scores, int nk, int cols,
                      const rv_ball_rows *values, void *excess) noexcept nogil
        int (*row_squares)(void *d2, int nk, const rv_ball_rows *query, int row,
                           const rv_ball_rows *keys, void *repair) noexcept nogil
        void (*row_scores)(void *s, const void *d2, int nk, const rv_ball_rows *query, int row,
                           const rv_ball_rows *keys, double curvature,
                           double scale) noexcept nogil
        void (*row_weigh)(void *p, const void *scores, int nk, const rv_ball_rows *values,
                          void *excess) noexcept nogil

    ctypedef struct rv_backward_tiles:
        double (*row_dot)(const void *a, const void *b, ptrdiff_t n) noexcept nogil
        void (*exp)(void *s, int rows, int cols, const void *lse, int by_row) noexcept nogil
        void (*scores)(const void *p, void *dp, int rows, int cols, const void *d,
                       int by_row) noexcept nogil
        void (*softcap)(void *ds, const void *s, int rows, int cols, double cap) noexcept nogil
        void (*alibi)(const void *ds, int rows, int cols, const void *position,
                      void *sum) noexcept nogil

    ctypedef struct rv_edge:
        const void *left
        const void *right
        const void *features
        const void *ahead

    ctypedef struct rv_edge_state:
        const void *lse
        const void *delta

    ctypedef struct rv_graph:
        int heads, vectors
        ptrdiff_t channels, edge_dim
        const void *att
        const void *weight
        double slope

    ctypedef struct rv_graph_tiles:
        int lanes, real
        void (*pad)(const rv_graph *g, const void *row, double scale, const void *shift,
                    void *dst) noexcept nogil
        void (*scores)(const rv_graph *g, const rv_edge *edges, int n, void *s,
                       ptrdiff_t lds) noexcept nogil
        void (*update)(const rv_graph *g, const rv_edge *edges, int n, void *s, ptrdiff_t lds,
                       void *m, void *l, void *fall, void *o, int first) noexcept nogil
        void (*count)(const rv_graph *g, const rv_edge *edges, int n,
                      double *sums) noexcept nogil
        void (*finish)(const rv_graph *g, const void *m, const void *l, const void *o,
                       const void *message, const void *bias, int average, int accumulate,
                       void *out, void *lse) noexcept nogil
        void (*transforms)(const rv_graph *g, const rv_edge *edges, int n, void *u, void *s,
                           ptrdiff_t lds) noexcept nogil
        void (*dots)(const rv_graph *g, const rv_edge *edges, int n, void *t,
                     ptrdiff_t lds) noexcept nogil
        void (*weigh)(const rv_graph *g, const rv_edge_state *states, int n, void *s, void *t,
                      ptrdiff_t lds) noexcept nogil
        void (*differentiate)(const rv_graph *g, int n, void *u, const void *ds, ptrdiff_t lds,
                              void *own, void *att) noexcept nogil
        void (*accumulate)(const rv_graph *g, const rv_edge *edges, int n, const void *p,
                           ptrdiff_t lds, void *o) noexcept nogil

    ctypedef struct rv_rotary_tiles:
        void (*rotate)(const void *x, ptrdiff_t ld, ptrdiff_t head_stride, int rows, int heads,
                       ptrdiff_t dim, const int64_t *positions, const void *table,
                       int neighbours, void *out) noexcept nogil
        void (*scores)(const void *q, ptrdiff_t ldq, const void *k, ptrdiff_t ldk,
                       ptrdiff_t head_stride, int nk, int heads, int group, ptrdiff_t dim,
                       const int64_t *positions, const void *table, int neighbours, void *s,
                       ptrdiff_t lds) noexcept nogil

    ctypedef struct rv_linear_tiles:
        void (*subtract)(void *s, int nk, int cols, const void *h) noexcept nogil
        void (*activate)(void *s, int nk, int cols, int elu, double epsilon,
                         const void *factor, void *sum) noexcept nogil
        void (*row_maxima)(const void *s, int nk, int cols, void *top) noexcept nogil
        void (*mix)(void *o, ptrdiff_t rows, int cols, const void *factor, const void *share,
                    const void *x) noexcept nogil
        void (*causal)(void *p, int nk, int cols, const void *key_top, const void *top,
                       const void *share, const void *count, void *sum) noexcept nogil
        void (*add_scores)(const void *qt, int cols, const void *k, ptrdiff_t ldk, int nk,
                           ptrdiff_t dim, void *s) noexcept nogil
        void (*column_sums)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dv,
                            void *sum) noexcept nogil
        void (*weigh)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dv, const void *weight,
                      void *out) noexcept nogil

    ctypedef struct rv_row_tiles:
        int panel, real
        double low, high
        void (*softmax)(const void *x, ptrdiff_t n, double temperature,
                        void *out) noexcept nogil
        double (*squares)(const void *x, ptrdiff_t n, double scale) noexcept nogil
        void (*products)(const void *a, const void *b, ptrdiff_t n, double scale_a,
                         double scale_b, double *sums) noexcept nogil
        double (*distance)(const void *a, const void *b, ptrdiff_t n,
                           double scale) noexcept nogil
        void (*divide)(const void *x, ptrdiff_t n, double scale, double divisor,
                       void *out) noexcept nogil
        void (*column_sums)(const void *x, int rows, ptrdiff_t n, const double *center,
                            double *sums) noexcept nogil
        void (*column_squares)(const void *x, int rows, ptrdiff_t n, const double *center,
                               double *sums) noexcept nogil
        void (*standardize)(const void *x, ptrdiff_t n, const double *mean,
                            const double *factor, void *out) noexcept nogil
        void (*pack_panel)(const void *x, ptrdiff_t rows, ptrdiff_t dim,
                           void *dst) noexcept nogil
        void (*add_distances)(const void *a, const void *b, ptrdiff_t dim, double *s,
                              ptrdiff_t lds) noexcept nogil
        int (*store_distances)(const double *s, ptrdiff_t lds, int rows, int cols, void *out,
                               void *turned, ptrdiff_t ldo) noexcept nogil

    ctypedef struct rv_sgd:
        double rate, decay, keep, share, momentum
        int nesterov

    ctypedef struct rv_adam:
        double rate, decay, shrink, beta1, beta2, root, epsilon

    ctypedef struct rv_optim_tiles:
        int real
        void (*sgd)(void *p, const void *g, void *b, ptrdiff_t n,
                    const rv_sgd *options) noexcept nogil
        void (*adam)(void *p, const void *g, void *m, void *v, void *peak, ptrdiff_t n,
                     const rv_adam *options) noexcept nogil

    ctypedef struct rv_table:
        const char *isa
        const rv_softmax_tiles *softmax[5]
        const rv_softmax_tiles *wide[5]
        const rv_decode_tiles *decode[5]
        const rv_ball_tiles *ball[4]
        const rv_backward_tiles *backward[4]
        const rv_graph_tiles *graph[2]
        const rv_row_tiles *rows[2]
        const rv_linear_tiles *linear[2]
        const rv_rotary_tiles *rotary[4]
        const rv_optim_tiles *optim[2]
        int (*quantize)(const float *x, ptrdiff_t n, int8_t *out, float *scale) noexcept nogil
        int (*any_between)(const float *x, ptrdiff_t n, uint32_t low,
                           uint32_t high) noexcept nogil


cdef const rv_table *tiles() noexcept nogil
