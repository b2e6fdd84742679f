"""Attention along the edges of a graph: who computes what.

Work is cut by the number of edges, from indptr alone: many small rows make one item, a row of
more than two items is cut into chunks that each leave a state, and these are merged in order.
So a graph with one hub uses every thread, and the bits of a result do not depend on who
computed what. Memory beside inputs and output: one block a thread, a state for each chunk.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels._dispatch cimport rv_edge
from ruvector._kernels._edges cimport (
    BLOCK, Block, Graph, block_bytes, lay_out, merge_chunks, run_chunk, run_rows, state_bytes,
    take_features, up,
)
from ruvector._kernels._openmp cimport team_size, thread_index

# Edges of one item: long enough to hide the start of a thread, short enough to balance.
cdef Py_ssize_t ITEM_EDGES = 4096
# Multiply-adds below which waking a thread costs more than it saves, and multiply-adds
# between two looks at pending signals.
cdef double SMALL_WORK = 1e6
cdef double SLAB_WORK = 1e10


cdef void fill_plan(const Graph *g, Plan *plan, bint count_only) noexcept nogil:
    """Count the items, then list them."""
    cdef Py_ssize_t n = 0, states = 0, i, row = 0, held = 0
    cdef int64_t degree, begin
    for i in range(g.receivers):
        degree = g.indptr[i + 1] - g.indptr[i]
        if degree > 2 * ITEM_EDGES:
            if row < i:
                if not count_only:
                    plan.items[n] = Item(row, i, 0, 0, -1)
                n += 1
            begin = g.indptr[i]
            while begin < g.indptr[i + 1]:
                if not count_only:
                    plan.items[n] = Item(i, i + 1, begin,
                                         min(begin + ITEM_EDGES, g.indptr[i + 1]), states)
                begin += ITEM_EDGES
                n += 1
                states += 1
            row, held = i + 1, 0
            continue
        held += degree + 1
        if held >= ITEM_EDGES or i + 1 == g.receivers:
            if not count_only:
                plan.items[n] = Item(row, i + 1, 0, 0, -1)
            n += 1
            row, held = i + 1, 0
    plan.count, plan.states = n, states


cdef inline void run_item(const Graph *g, const Plan *plan, const Item *item) noexcept nogil:
    cdef Block *block = lay_out(g, plan.scratch + thread_index() * plan.scratch_size)
    if item.state < 0:
        run_rows(g, block, item.row, item.stop)
    else:
        run_chunk(g, block, item.row, item.begin, item.end,
                  plan.memory + item.state * plan.state_size)


cdef Py_ssize_t chunks_of(const Graph *g, const Item *item) noexcept nogil:
    """How many chunks the row has whose first chunk this is; 0 for any other item."""
    if item.state < 0 or item.begin != g.indptr[item.row]:
        return 0
    return (g.indptr[item.row + 1] - item.begin + ITEM_EDGES - 1) // ITEM_EDGES


cdef void finish_hub(const Graph *g, const Plan *plan, Py_ssize_t first) noexcept nogil:
    """Merge the states of the row whose first chunk this is; any other item is finished."""
    cdef const Item *item = plan.items + first
    cdef Py_ssize_t count = chunks_of(g, item)
    if count:
        merge_chunks(g, lay_out(g, plan.scratch), item.row,
                     plan.memory + item.state * plan.state_size, count)


cdef double edge_work(const Graph *g) noexcept nogil:
    return <double> g.model.heads * g.model.channels * (g.model.edge_dim + 8)


cdef int run_plan(const Graph *g, const Plan *plan, int threads) except -1 nogil:
    cdef Py_ssize_t start = 0, stop, i
    cdef Py_ssize_t slab = threads + <Py_ssize_t> (SLAB_WORK / (ITEM_EDGES * edge_work(g)))
    while start < plan.count:
        stop = min(plan.count, start + slab)
        for i in prange(start, stop, schedule="dynamic", num_threads=threads,
                        use_threads_if=threads > 1):
            run_item(g, plan, plan.items + i)
        start = stop
        with gil:
            PyErr_CheckSignals()
    for i in range(plan.count):
        finish_hub(g, plan, i)
    return 0


cdef int run_graph(const Graph *g, int threads) except -1 nogil:
    """Output and L of every receiver over its senders."""
    cdef Plan plan
    cdef char *memory
    cdef Py_ssize_t lists
    cdef double work = edge_work(g) * (g.edges + g.receivers)
    fill_plan(g, &plan, True)
    threads = 1 if work < SMALL_WORK else team_size(threads, plan.count)
    plan.state_size, plan.scratch_size = state_bytes(g), block_bytes(g)
    lists = up(plan.count * sizeof(Item), 64)
    memory = <char *> malloc(lists + plan.states * plan.state_size
                             + threads * plan.scratch_size + 64)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the edges' scratch")
    plan.scratch = <char *> up(<Py_ssize_t> memory, 64)
    plan.memory = plan.scratch + threads * plan.scratch_size
    plan.items = <Item *> (plan.memory + plan.states * plan.state_size)
    fill_plan(g, &plan, False)
    try:
        run_plan(g, &plan, threads)
    finally:
        free(memory)
    return 0


cdef void score_keys(const Graph *g, const Grid *grid, Py_ssize_t item, Py_ssize_t chunks,
                     char *memory) noexcept nogil:
    """Scores of one receiver against one item's worth of senders."""
    cdef Block *block = lay_out(g, memory)
    cdef Py_ssize_t b = item // (grid.rows * chunks), i = item // chunks % grid.rows
    cdef Py_ssize_t j = item % chunks * ITEM_EDGES, stop = min(grid.keys, j + ITEM_EDGES), h
    cdef const char *features
    cdef rv_edge *edge
    cdef char *out
    cdef int e, n
    g.tiles.pad(&g.model, g.right + b * grid.right_batch + i * g.right_row, 1.0, g.shift,
                block.receivers)
    while j < stop:
        n = <int> min(<Py_ssize_t> BLOCK, stop - j)
        features = (g.features + b * grid.feature_batch + i * grid.feature_receiver
                    + j * grid.feature_sender)
        for e in range(n):
            edge = block.edges + e
            edge.left = g.left + b * grid.left_batch + (j + e) * g.left_row
            edge.ahead = edge.left  # rows lie one after the other
            edge.right = block.receivers
            edge.features = block.features + e * g.padded_features
            if g.model.edge_dim:
                take_features(g, edge, features + e * grid.feature_sender)
        g.tiles.scores(&g.model, block.edges, n, block.scores, g.lds)
        for h in range(g.model.heads):
            out = (g.out + b * grid.out_batch + h * grid.out_head + i * grid.out_receiver
                   + j * grid.out_sender)
            if g.tiles.real == sizeof(double):
                for e in range(n):
                    (<double *> (out + e * grid.out_sender))[0] = (
                        <const double *> block.scores)[e * g.lds + h]
            else:
                for e in range(n):
                    (<float *> (out + e * grid.out_sender))[0] = (
                        <const float *> block.scores)[e * g.lds + h]
        j += n


cdef int run_grid(const Graph *g, const Grid *grid, int threads) except -1 nogil:
    """Scores of every receiver against every sender."""
    cdef Py_ssize_t chunks = (grid.keys + ITEM_EDGES - 1) // ITEM_EDGES
    cdef Py_ssize_t count = grid.batch * grid.rows * chunks, size = block_bytes(g)
    cdef Py_ssize_t start = 0, stop, i, slab
    cdef double work = edge_work(g) * grid.batch * grid.rows * grid.keys
    cdef char *memory
    cdef char *scratch
    threads = 1 if work < SMALL_WORK else team_size(threads, count)
    memory = <char *> malloc(threads * size + 64)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the edges' scratch")
    scratch = <char *> up(<Py_ssize_t> memory, 64)
    slab = threads + <Py_ssize_t> (count * (SLAB_WORK / max(work, 1.0)))
    try:
        while start < count:
            stop = min(count, start + slab)
            for i in prange(start, stop, schedule="dynamic", num_threads=threads,
                            use_threads_if=threads > 1):
                score_keys(g, grid, i, chunks, scratch + thread_index() * size)
            start = stop
            with gil:
                PyErr_CheckSignals()
    finally:
        free(memory)
    return 0
