"""The two calls that walk over edges, as the nogil drivers see them."""

from libc.stdint cimport int64_t

from ruvector._kernels._edges cimport Graph


cdef struct Item:
    Py_ssize_t row, stop       # receivers; one of them for a chunk
    int64_t begin, end         # edges of a chunk
    Py_ssize_t state           # index of the chunk's state, -1 for whole rows


cdef struct Plan:
    Item *items
    Py_ssize_t count, states
    char *memory
    char *scratch
    Py_ssize_t state_size, scratch_size


cdef struct Grid:
    # Every receiver against every sender; strides over (batch, receiver, sender) in bytes.
    Py_ssize_t batch, rows, keys
    Py_ssize_t left_batch, right_batch
    Py_ssize_t feature_batch, feature_receiver, feature_sender
    Py_ssize_t out_batch, out_head, out_receiver, out_sender


cdef void fill_plan(const Graph *g, Plan *plan, bint count_only) noexcept nogil
cdef Py_ssize_t chunks_of(const Graph *g, const Item *item) noexcept nogil
cdef double edge_work(const Graph *g) noexcept nogil
cdef int run_graph(const Graph *g, int threads) except -1 nogil
cdef int run_grid(const Graph *g, const Grid *grid, int threads) except -1 nogil
