"""The gradient of attention along edges: who computes what.

Two walks over the edges, one by receiver and one by sender, each of which owns the rows that
it sums (Dao 2023, arXiv 2307.08691, has the same two passes for dense attention). The second
runs over the transposed rows, ordered by a counting sort; in both, an end of an edge is the
*own* row, which is padded once, or the *other* one, read in place. Scores are computed again
in both: beside inputs and results there are O(E) integers and a few blocks.

Work is cut as in _edge_plan.pyx. Sums over all edges (those of att and W) are kept by item
and merged in order, so that bits do not depend on who computed what.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels._edge_gradients cimport (
    Gradient, GradientBlock, Walk, finish_own, gradient_block_bytes, group_columns,
    lay_out_gradient, put_real, real_at, walk_chunk, walk_rows,
)
from ruvector._kernels._edge_plan cimport Item, Plan, chunks_of, edge_work, fill_plan
from ruvector._kernels._edges cimport BLOCK, Graph, up
from ruvector._kernels._hops cimport group_positions
from ruvector._kernels._openmp cimport team_size, thread_index

# Multiply-adds below which waking a thread costs more than it saves.
cdef double SMALL_WORK = 1e6
# Items between two merges of their sums, and two looks at pending signals.
cdef Py_ssize_t SLAB_ITEMS = 64


cdef inline void walk_item(const Walk *w, const Plan *plan, Py_ssize_t index) noexcept nogil:
    cdef const Item *item = plan.items + index
    cdef const Graph *g = &w.graph
    cdef GradientBlock *block = lay_out_gradient(
        w, plan.scratch + thread_index() * plan.scratch_size)
    block.att = block.weight = NULL
    if w.by_receiver:
        block.att = w.partials + index % SLAB_ITEMS * w.partial_size
        block.weight = block.att + g.padded_row
        memset(block.att, 0, w.partial_size)
    if item.state >= 0:
        walk_chunk(w, block, item.row, item.begin, item.end)
        memcpy(plan.memory + item.state * plan.state_size, block.sums, 2 * g.padded_row)
    else:
        walk_rows(w, block, item.row, item.stop)


cdef void finish_chunks(const Walk *w, const Plan *plan) noexcept nogil:
    """Add up the chunks of every row that was cut, in order."""
    cdef const Graph *g = &w.graph
    cdef Py_ssize_t real = g.tiles.real, width = 2 * g.padded_row // real, i, j, k, count
    cdef char *total
    cdef const char *other
    for i in range(plan.count):
        count = chunks_of(g, plan.items + i)
        if count == 0:
            continue
        total = plan.memory + plan.items[i].state * plan.state_size
        for j in range(1, count):
            other = total + j * plan.state_size
            for k in range(width):
                put_real(total, k, real, real_at(total, k, real) + real_at(other, k, real))
        finish_own(w, total, plan.items[i].row)


cdef void add_partials(const Walk *w, Py_ssize_t items, double *totals) noexcept nogil:
    cdef Py_ssize_t real = w.graph.tiles.real, width = w.partial_size // real, i, k
    cdef const char *partial
    for i in range(items):
        partial = w.partials + i * w.partial_size
        for k in range(width):
            totals[k] += real_at(partial, k, real)


cdef void write_totals(const Walk *w, const double *totals) noexcept nogil:
    """Bring the sums over all edges to the shapes of att and W."""
    cdef const Graph *g = &w.graph
    cdef Py_ssize_t real = g.tiles.real, padded = g.padded_row // real, h, c, at, row, start = 0
    cdef Py_ssize_t d
    cdef const double *weight = totals + padded
    cdef int cols
    for h in range(g.model.heads):
        for c in range(g.model.channels):
            at = h * g.model.vectors * g.tiles.lanes + c
            row = h * g.model.channels + c
            put_real(w.whole.att, row, real, totals[at])
            start = 0
            while start < g.model.edge_dim and w.whole.weight != NULL:
                cols = group_columns(w, start)
                for d in range(start, min(start + cols, g.model.edge_dim)):
                    put_real(w.whole.weight + row * w.whole.weight_row, d, real,
                             weight[start * padded + at * cols + d - start])
                start += cols


cdef int walk_graph(Walk *w, int threads) except -1 nogil:
    """Walk over all own rows."""
    cdef Plan plan
    cdef const Graph *g = &w.graph
    cdef double work = 2 * edge_work(g) * (g.edges + g.receivers)
    cdef Py_ssize_t lists, sums, partials, start = 0, stop, i
    cdef char *memory
    cdef double *totals
    fill_plan(g, &plan, True)
    threads = 1 if work < SMALL_WORK else team_size(threads, plan.count)
    plan.state_size = up(2 * g.padded_row, 64)
    plan.scratch_size = gradient_block_bytes(w)
    w.partial_size = up(g.padded_row * (1 + w.columns), 64) if w.by_receiver else 0
    sums = up(w.partial_size // g.tiles.real * sizeof(double), 64)
    partials = min(SLAB_ITEMS, plan.count) * w.partial_size
    lists = up(plan.count * sizeof(Item), 64)
    memory = <char *> malloc(64 + sums + partials + threads * plan.scratch_size
                             + plan.states * plan.state_size + lists)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the edges' scratch")
    totals = <double *> up(<Py_ssize_t> memory, 64)
    memset(totals, 0, sums)
    w.partials = <char *> totals + sums
    plan.scratch = w.partials + partials
    plan.memory = plan.scratch + threads * plan.scratch_size
    plan.items = <Item *> (plan.memory + plan.states * plan.state_size)
    fill_plan(g, &plan, False)
    try:
        while start < plan.count:
            stop = min(plan.count, start + SLAB_ITEMS)
            for i in prange(start, stop, schedule="dynamic", num_threads=threads,
                            use_threads_if=threads > 1):
                walk_item(w, &plan, i)
            if w.by_receiver:
                add_partials(w, stop - start, totals)
            start = stop
            with gil:
                PyErr_CheckSignals()
        finish_chunks(w, &plan)
        if w.by_receiver:
            write_totals(w, totals)
    finally:
        free(memory)
    return 0


cdef void pack_weight(const Walk *w, char *packed) noexcept nogil:
    """Lay W out by groups of features for the gradient of features, the last repeated."""
    cdef const Graph *g = &w.graph
    cdef const void *rows[BLOCK]
    cdef Py_ssize_t start = 0
    cdef int c, cols
    while start < g.model.edge_dim:
        cols = group_columns(w, start)
        for c in range(cols):
            rows[c] = (<const char *> g.model.weight
                       + min(start + c, g.model.edge_dim - 1) * g.padded_row)
        w.whole.products.pack(rows, cols, g.padded_row // g.tiles.real, 1.0,
                              packed + start * g.padded_row)
        start += cols


cdef int walk_by_receiver(const Gradient *d, int threads) except -1 nogil:
    cdef Walk w
    cdef char *packed
    memset(&w, 0, sizeof(Walk))
    w.graph, w.whole, w.by_receiver = d.graph, d, True
    w.own_dots, w.own_dots_row = d.sums, d.sum_row
    w.other_dots, w.other_dots_row = d.messages, d.message_row
    w.out, w.out_row = d.right, d.right_row
    w.columns = up(d.graph.model.edge_dim, d.products.cols)
    packed = <char *> malloc((w.columns + 1) * d.graph.padded_row + 64)
    if packed == NULL:
        with gil:
            raise MemoryError("no memory for the packed weights")
    w.packed = <const char *> up(<Py_ssize_t> packed, 64)
    pack_weight(&w, <char *> w.packed)
    try:
        walk_graph(&w, threads)
    finally:
        free(packed)
    return 0


cdef int walk_by_sender(const Gradient *d, int threads) except -1 nogil:
    """Walk over the transposed graph."""
    cdef Walk w
    cdef const Graph *g = &d.graph
    cdef int64_t *starts = <int64_t *> malloc(
        (g.senders + 1 + 3 * g.edges) * sizeof(int64_t))
    cdef int64_t *order = starts + g.senders + 1
    cdef int64_t *receivers = order + g.edges
    cdef int64_t *row_of = receivers + g.edges
    cdef Py_ssize_t i
    cdef int64_t e
    if starts == NULL:
        with gil:
            raise MemoryError("no memory for the transposed edges")
    group_positions(g.indices, g.wide, g.edges, starts, g.senders, order)
    for i in range(g.receivers):
        for e in range(g.indptr[i], g.indptr[i + 1]):
            row_of[e] = i
    for i in range(g.edges):
        receivers[i] = row_of[order[i]]
    memset(&w, 0, sizeof(Walk))
    w.graph, w.whole, w.order = d.graph, d, order
    w.graph.receivers, w.graph.senders = g.senders, g.receivers
    w.graph.indptr, w.graph.indices, w.graph.wide = starts, receivers, True
    w.graph.left, w.graph.left_row = g.right, g.right_row
    w.graph.right, w.graph.right_row = g.left, g.left_row
    w.own_dots, w.own_dots_row = d.messages, d.message_row
    w.other_dots, w.other_dots_row = d.sums, d.sum_row
    w.out, w.out_row = d.left, d.left_row
    w.message, w.message_row = d.message, d.message_out_row
    try:
        walk_graph(&w, threads)
    finally:
        free(starts)
    return 0


cdef int run_gradient(const Gradient *d, int threads) except -1 nogil:
    """Every gradient of one graph."""
    walk_by_receiver(d, threads)
    walk_by_sender(d, threads)
    return 0
