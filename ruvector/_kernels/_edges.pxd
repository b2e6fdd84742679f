"""Attention along the edges of a graph as the nogil drivers see it."""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t

from ruvector._kernels._dispatch cimport rv_decode_tiles, rv_edge, rv_graph, rv_graph_tiles


cdef enum:
    BLOCK = 64  # edges scored together: their rows of left stay in L1 or L2 until summed


cdef struct Graph:
    # Strides are in bytes. Rows of left are reals of H * C; features, shift, message, bias
    # and lse may be null, and `load` is null where stored features are reals.
    const rv_graph_tiles *tiles
    const rv_decode_tiles *decode
    rv_graph model
    void (*load)(const void *x, ptrdiff_t ld, int rows, ptrdiff_t dim,
                 void *dst) noexcept nogil
    Py_ssize_t senders, receivers, edges
    const char *left
    const char *right
    const char *features
    char *out
    char *lse
    Py_ssize_t left_row, right_row, feature_row, out_row, lse_row
    # Of a row of scores in reals, and bytes of padded rows of channels and of features.
    Py_ssize_t lds, padded_row, padded_features
    const void *shift          # padded
    const void *message
    const void *bias
    bint loops, average, accumulate
    const int64_t *indptr
    const void *indices
    bint wide                  # int64 indices, else int32


cdef struct State:
    char *m
    char *l
    char *fall
    char *o
    double *sums               # of the features of the edges counted
    int64_t *count


cdef struct Stretch:
    Py_ssize_t row
    int edges
    bint first, last


cdef struct Block:
    rv_edge edges[BLOCK]
    Stretch stretches[BLOCK]
    int count, stretch         # edges held; stretches held
    State state                # of the receiver that is open
    char *scores
    char *receivers            # padded rows, one a stretch
    char *features             # rows of reals, one an edge


cdef inline Py_ssize_t up(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    return (n + unit - 1) // unit * unit


cdef inline int64_t sender_of(const Graph *g, int64_t e) noexcept nogil:
    if g.wide:
        return (<const int64_t *> g.indices)[e]
    return (<const int32_t *> g.indices)[e]


cdef void measure_rows(Graph *g) noexcept nogil
cdef Py_ssize_t state_bytes(const Graph *g) noexcept nogil
cdef Py_ssize_t block_bytes(const Graph *g) noexcept nogil
cdef Block *lay_out(const Graph *g, char *memory) noexcept nogil
cdef void take_features(const Graph *g, rv_edge *edge, const char *stored) noexcept nogil
cdef void run_rows(const Graph *g, Block *block, Py_ssize_t row,
                   Py_ssize_t stop) noexcept nogil
cdef void run_chunk(const Graph *g, Block *block, Py_ssize_t row, int64_t begin, int64_t end,
                    char *memory) noexcept nogil
cdef void merge_chunks(const Graph *g, Block *block, Py_ssize_t row, char *memory,
                       Py_ssize_t count) noexcept nogil
