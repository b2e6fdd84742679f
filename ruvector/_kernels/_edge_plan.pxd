"""The two calls that walk over edges, as the nogil drivers see them."""

from ruvector._kernels._edges cimport Graph


cdef struct Grid:
    # Every receiver against every sender; strides over (batch, receiver, sender) in bytes.
    Py_ssize_t batch, rows, keys
    Py_ssize_t left_batch, right_batch
    Py_ssize_t feature_batch, feature_receiver, feature_sender
    Py_ssize_t out_batch, out_head, out_receiver, out_sender


cdef int run_graph(const Graph *g, int threads) except -1 nogil
cdef int run_grid(const Graph *g, const Grid *grid, int threads) except -1 nogil
