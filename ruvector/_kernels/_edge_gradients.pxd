"""The gradient of a block of edges as the nogil driver sees it."""

from libc.stdint cimport int64_t

from ruvector._kernels._dispatch cimport rv_edge, rv_edge_state, rv_softmax_tiles
from ruvector._kernels._edges cimport BLOCK, Graph, Stretch


cdef struct Gradient:
    # `graph` describes the forward pass, without loops and with natural scores. Arrays of
    # reals; strides of rows in bytes; what is not wanted is null.
    Graph graph
    const rv_softmax_tiles *products
    const char *messages
    const char *sums           # gradient of the attended sums
    const char *lse
    const char *delta
    const char *bias
    Py_ssize_t message_row, sum_row, state_row
    char *left
    char *message              # null where it is part of `left`
    char *right
    char *features
    char *edge_bias
    char *att
    char *weight               # (H * C, De)
    Py_ssize_t left_row, message_out_row, right_row, feature_row, weight_row


cdef struct Walk:
    # Rows of the graph are the own ones: `left` of it is what the others are scored with.
    Graph graph
    const Gradient *whole
    bint by_receiver
    const int64_t *order       # positions of edges, null where they are in order
    const char *own_dots
    const char *other_dots
    Py_ssize_t own_dots_row, other_dots_row
    char *out
    char *message
    Py_ssize_t out_row, message_row
    const char *packed         # W for the gradient of features
    Py_ssize_t columns         # features, padded to whole groups
    Py_ssize_t partial_size
    char *partials             # of the items of a slab


cdef struct GradientBlock:
    rv_edge scored[BLOCK]
    rv_edge dotted[BLOCK]
    rv_edge_state states[BLOCK]
    int64_t places[BLOCK]
    Stretch stretches[BLOCK]
    int count, stretch
    char *u                    # padded rows, one an edge
    char *s
    char *t
    char *own                  # padded rows, two a stretch: scored and dotted with
    char *panel                # features of the block, and what becomes of them
    char *sums                 # padded rows of the receiver that is open: out and message
    char *att                  # of the item: a padded row, then that of W
    char *weight


cdef inline int group_columns(const Walk *w, Py_ssize_t start) noexcept nogil:
    cdef int lanes = w.whole.products.lanes
    return lanes if w.graph.model.edge_dim - start <= lanes else w.whole.products.cols


cdef inline double real_at(const char *x, Py_ssize_t i, Py_ssize_t real) noexcept nogil:
    return (<const double *> x)[i] if real == sizeof(double) else (<const float *> x)[i]


cdef inline void put_real(char *x, Py_ssize_t i, Py_ssize_t real, double value) noexcept nogil:
    if real == sizeof(double):
        (<double *> x)[i] = value
    else:
        (<float *> x)[i] = <float> value


cdef Py_ssize_t gradient_block_bytes(const Walk *w) noexcept nogil
cdef GradientBlock *lay_out_gradient(const Walk *w, char *memory) noexcept nogil
cdef void finish_own(const Walk *w, const char *sums, Py_ssize_t row) noexcept nogil
cdef void walk_rows(const Walk *w, GradientBlock *block, Py_ssize_t row,
                    Py_ssize_t stop) noexcept nogil
cdef void walk_chunk(const Walk *w, GradientBlock *block, Py_ssize_t row, int64_t begin,
                     int64_t end) noexcept nogil
