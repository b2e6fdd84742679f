"""Attention along the edges of a graph: the compiled kernels' Python face.

Arguments and results are those of the NumPy twin, fallback/graph.py, whose docstrings
describe them. Here arrays become pointers and strides; the drivers compute without the GIL.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ruvector._kernels cimport _dispatch
from ruvector._kernels._edge_plan cimport Grid, run_graph, run_grid
from ruvector._kernels._edges cimport Graph, measure_rows
from ruvector._kernels._hops cimport group_positions, measure_hops
from ruvector._kernels._numpy cimport data, dtype_of, length, stride
from ruvector._kernels._project cimport Projection, run_projection

cnp.import_array()

cdef double LOG2E = 1.4426950408889634


cdef inline const void *data_or_null(array) except? NULL:
    return NULL if array is None else data(array)


cdef inline bint is_wide(cnp.ndarray indices) noexcept:
    return cnp.PyArray_ITEMSIZE(indices) == 8


def project(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray out, int threads):
    """Multiply every row of x by a matrix."""
    cdef Projection p
    p.table = _dispatch.tiles()
    p.dtype, p.real = dtype_of(x), dtype_of(weight)
    p.rows, p.dim, p.width = length(x, 0), length(x, 1), length(weight, 0)
    p.x, p.x_row = data(x), stride(x, 0)
    p.weight, p.weight_row = data(weight), stride(weight, 0)
    p.out, p.out_row = data(out), stride(out, 0)
    with nogil:
        run_projection(&p, threads)


cdef char *describe(Graph *g, cnp.ndarray att, edges, spec, double unit) except NULL:
    """Fill in tiles and score function; returns the memory of the padded rows, to free."""
    cdef const _dispatch.rv_table *table = _dispatch.tiles()
    cdef int real = dtype_of(att), dtype = real if edges is None else dtype_of(edges)
    cdef Py_ssize_t row, d, c
    cdef cnp.ndarray columns
    cdef char *memory
    memset(g, 0, sizeof(Graph))
    g.tiles, g.decode = table.graph[real], table.decode[real]
    g.model.heads, g.model.channels = <int> length(att, 0), length(att, 1)
    g.model.vectors = <int> ((g.model.channels + g.tiles.lanes - 1) // g.tiles.lanes)
    g.model.slope = spec.negative_slope
    if edges is not None:
        g.model.edge_dim = length(spec.edge_weight, 1)
        g.load = table.ball[dtype].load if dtype != real else NULL
    measure_rows(g)
    row = g.padded_row
    memory = <char *> malloc((g.model.edge_dim + 2) * row + 1)
    if memory == NULL:
        raise MemoryError("no memory for the padded weights")
    g.tiles.pad(&g.model, data(att), unit, NULL, memory)
    g.model.att = memory
    if spec.shift is not None:
        g.tiles.pad(&g.model, data(spec.shift), 1.0, NULL, memory + row)
        g.shift = memory + row
    if g.model.edge_dim:
        columns = spec.edge_weight.T.copy()
        c = stride(columns, 0)
        for d in range(g.model.edge_dim):
            g.tiles.pad(&g.model, data(columns) + d * c, 1.0, NULL, memory + (2 + d) * row)
        g.model.weight = memory + 2 * row
    return memory


def aggregate(cnp.ndarray left, cnp.ndarray right, edges, spec, cnp.ndarray indptr,
              cnp.ndarray indices, cnp.ndarray out, lse, int threads):
    """Attend from every receiver of a graph to its senders."""
    cdef Graph g
    cdef char *memory = describe(&g, spec.att, edges, spec, LOG2E)
    try:
        g.senders, g.receivers = length(left, 0), length(right, 0)
        g.edges = length(indices, 0)
        g.left, g.left_row = data(left), stride(left, 0)
        g.right, g.right_row = data(right), stride(right, 0)
        if edges is not None:
            g.features, g.feature_row = data(edges), stride(edges, 0)
        g.out, g.out_row = data(out), stride(out, 0)
        if lse is not None:
            g.lse, g.lse_row = data(lse), stride(lse, 0)
        g.message, g.bias = data_or_null(spec.message), data_or_null(spec.bias)
        g.loops, g.average, g.accumulate = spec.loops, spec.average, spec.accumulate
        g.indptr, g.indices = <const int64_t *> data(indptr), data(indices)
        g.wide = is_wide(indices)
        with nogil:
            run_graph(&g, threads)
    finally:
        free(memory)


def scores(cnp.ndarray left, cnp.ndarray right, edges, spec, cnp.ndarray out, int threads):
    """Score every receiver against every sender."""
    cdef Graph g
    cdef Grid grid
    cdef char *memory = describe(&g, spec.att, edges, spec, 1.0)
    try:
        memset(&grid, 0, sizeof(Grid))
        grid.batch, grid.rows, grid.keys = length(left, 0), length(right, 1), length(left, 1)
        g.left, g.left_row, grid.left_batch = data(left), stride(left, 1), stride(left, 0)
        g.right, g.right_row, grid.right_batch = (
            data(right), stride(right, 1), stride(right, 0))
        if edges is not None:
            g.features = data(edges)
            grid.feature_batch, grid.feature_receiver = stride(edges, 0), stride(edges, 1)
            grid.feature_sender = stride(edges, 2)
        g.out = data(out)
        grid.out_batch, grid.out_head = stride(out, 0), stride(out, 1)
        grid.out_receiver, grid.out_sender = stride(out, 2), stride(out, 3)
        with nogil:
            run_grid(&g, &grid, threads)
    finally:
        free(memory)


def group(cnp.ndarray keys, cnp.ndarray indptr, cnp.ndarray order):
    """Order positions by key, equal keys as they came."""
    cdef Py_ssize_t count = length(keys, 0), groups = length(indptr, 0) - 1
    cdef const void *key = data(keys)
    cdef bint wide = is_wide(keys)
    cdef int64_t *starts = <int64_t *> data(indptr)
    cdef int64_t *positions = <int64_t *> data(order)
    with nogil:
        group_positions(key, wide, count, starts, groups, positions)


def hops(cnp.ndarray indptr, cnp.ndarray indices, cnp.ndarray sources, int64_t max_hops,
         cnp.ndarray out):
    """Measure in edges how far every node is from the nearest source."""
    cdef const int64_t *starts = <const int64_t *> data(indptr)
    cdef const void *senders = data(indices)
    cdef bint wide = is_wide(indices)
    cdef const int64_t *first = <const int64_t *> data(sources)
    cdef Py_ssize_t count = length(sources, 0), nodes = length(out, 0)
    cdef int64_t *distances = <int64_t *> data(out)
    with nogil:
        measure_hops(starts, senders, wide, first, count, max_hops, distances, nodes)
