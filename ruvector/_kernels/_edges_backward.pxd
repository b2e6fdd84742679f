"""The gradient of attention along edges as the nogil driver sees it."""

from libc.stdint cimport int64_t

from ruvector._kernels._dispatch cimport rv_softmax_tiles
from ruvector._kernels._edges cimport Graph


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


cdef int run_gradient(const Gradient *d, int threads) except -1 nogil
