"""Edges in blocks: which are scored together, and whose state they are folded into.

An edge is scored and summed in a block with its neighbours in CSR order; a receiver whose
edges lie in several blocks carries its state (m, l, o) along. The mathematics is in
simd/graph.inc.h.
"""

from libc.float cimport DBL_MAX, FLT_MAX
from libc.string cimport memset


cdef void measure_rows(Graph *g) noexcept nogil:
    """Fill in the sizes that follow from the model and the tiles."""
    cdef Py_ssize_t lanes = g.tiles.lanes
    g.lds = up(g.model.heads, lanes)
    g.padded_row = <Py_ssize_t> g.model.heads * g.model.vectors * lanes * g.tiles.real
    g.padded_features = up(g.model.edge_dim, lanes) * g.tiles.real


cdef Py_ssize_t state_bytes(const Graph *g) noexcept nogil:
    return up(3 * g.lds * g.tiles.real + g.padded_row
              + (g.model.edge_dim + 2) * sizeof(double), 64)


cdef State state_at(const Graph *g, char *memory) noexcept nogil:
    cdef State state
    cdef Py_ssize_t heads = g.lds * g.tiles.real
    state.o = memory
    state.m = state.o + g.padded_row
    state.l = state.m + heads
    state.fall = state.l + heads
    state.sums = <double *> up(<Py_ssize_t> (state.fall + heads), sizeof(double))
    state.count = <int64_t *> (state.sums + g.model.edge_dim)
    return state


cdef Py_ssize_t block_bytes(const Graph *g) noexcept nogil:
    return up(sizeof(Block), 64) + up(
        BLOCK * (g.lds * g.tiles.real + g.padded_row + g.padded_features), 64
    ) + state_bytes(g)


cdef Block *lay_out(const Graph *g, char *memory) noexcept nogil:
    cdef Block *block = <Block *> memory
    block.count = block.stretch = 0
    block.receivers = memory + up(sizeof(Block), 64)
    block.features = block.receivers + BLOCK * g.padded_row
    block.scores = block.features + BLOCK * g.padded_features
    # Lanes beyond the heads are computed, too.
    memset(block.scores, 0, BLOCK * g.lds * g.tiles.real)
    block.state = state_at(g, memory + block_bytes(g) - state_bytes(g))
    return block


cdef void start_state(const Graph *g, const State *state) noexcept nogil:
    cdef Py_ssize_t h
    memset(state.o, 0, g.padded_row)
    for h in range(g.lds):
        if g.tiles.real == sizeof(double):
            (<double *> state.m)[h], (<double *> state.l)[h] = -DBL_MAX, 0
        else:
            (<float *> state.m)[h], (<float *> state.l)[h] = -FLT_MAX, 0


cdef void start_count(const Graph *g, const State *state) noexcept nogil:
    memset(state.sums, 0, g.model.edge_dim * sizeof(double))
    state.count[0] = 0


cdef void finish_row(const Graph *g, const State *state, Py_ssize_t row) noexcept nogil:
    g.tiles.finish(&g.model, state.m, state.l, state.o, g.message, g.bias, g.average,
                   g.accumulate, g.out + row * g.out_row,
                   NULL if g.lse == NULL else g.lse + row * g.lse_row)


cdef void flush(const Graph *g, Block *block) noexcept nogil:
    """Score the edges held and fold them into the states of their receivers."""
    cdef const Stretch *stretch
    cdef const State *state = &block.state
    cdef int i, start = 0
    if block.count:
        g.tiles.scores(&g.model, block.edges, block.count, block.scores, g.lds)
    for i in range(block.stretch):
        stretch = block.stretches + i
        if stretch.edges:
            g.tiles.update(&g.model, block.edges + start, stretch.edges,
                           block.scores + start * g.lds * g.tiles.real, g.lds,
                           state.m, state.l, state.fall, state.o, stretch.first)
            start += stretch.edges
        elif stretch.first:
            start_state(g, state)
        if stretch.last:
            finish_row(g, state, stretch.row)
    block.count = block.stretch = 0


cdef void open_stretch(const Graph *g, Block *block, Py_ssize_t row,
                       bint first) noexcept nogil:
    if block.stretch == BLOCK:
        flush(g, block)
    g.tiles.pad(&g.model, g.right + row * g.right_row, 1.0, g.shift,
                block.receivers + block.stretch * g.padded_row)
    block.stretches[block.stretch] = Stretch(row, 0, first, False)
    block.stretch += 1


cdef inline void count_edges(const Graph *g, Block *block) noexcept nogil:
    """Take the edges of the open stretch into the mean of their features."""
    cdef int n = block.stretches[block.stretch - 1].edges
    if g.loops and g.model.edge_dim and n:
        g.tiles.count(&g.model, block.edges + block.count - n, n, block.state.sums)
        block.state.count[0] += n


cdef inline rv_edge *new_edge(const Graph *g, Block *block, Py_ssize_t row,
                              int64_t sender) noexcept nogil:
    cdef rv_edge *edge
    if block.count == BLOCK:
        flush(g, block)
        open_stretch(g, block, row, False)
    edge = block.edges + block.count
    edge.left = edge.ahead = g.left + sender * g.left_row
    edge.right = block.receivers + (block.stretch - 1) * g.padded_row
    edge.features = block.features + block.count * g.padded_features
    block.stretches[block.stretch - 1].edges += 1
    block.count += 1
    return edge


cdef void take_features(const Graph *g, rv_edge *edge, const char *stored) noexcept nogil:
    if g.load == NULL:
        edge.features = stored
    else:
        g.load(stored, g.model.edge_dim, 1, g.model.edge_dim, <void *> edge.features)


cdef void add_edges(const Graph *g, Block *block, Py_ssize_t row, int64_t begin,
                    int64_t end) noexcept nogil:
    """Take edges of one receiver, whose stretch is open."""
    cdef int64_t e, sender
    cdef rv_edge *edge
    for e in range(begin, end):
        sender = sender_of(g, e)
        if g.loops and sender == row:
            continue
        if block.count == BLOCK:
            count_edges(g, block)
        edge = new_edge(g, block, row, sender)
        edge.ahead = g.left + sender_of(g, min(e + BLOCK, <int64_t> g.edges - 1)) * g.left_row
        if g.model.edge_dim:
            take_features(g, edge, g.features + e * g.feature_row)


cdef void add_loop(const Graph *g, Block *block, Py_ssize_t row,
                   const State *state) noexcept nogil:
    """Take the edge from a receiver to itself, with the mean features of its others."""
    cdef rv_edge *edge = new_edge(g, block, row, row)
    cdef double count = max(<double> state.count[0], 1.0)
    cdef Py_ssize_t d
    if g.tiles.real == sizeof(double):
        for d in range(g.model.edge_dim):
            (<double *> edge.features)[d] = state.sums[d] / count
    else:
        for d in range(g.model.edge_dim):
            (<float *> edge.features)[d] = <float> (state.sums[d] / count)


cdef void run_rows(const Graph *g, Block *block, Py_ssize_t row,
                   Py_ssize_t stop) noexcept nogil:
    """Output and L of the receivers from row to stop."""
    cdef Py_ssize_t i
    for i in range(row, stop):
        open_stretch(g, block, i, True)
        if g.loops:
            start_count(g, &block.state)
        add_edges(g, block, i, g.indptr[i], g.indptr[i + 1])
        if g.loops and i < g.senders:
            count_edges(g, block)
            add_loop(g, block, i, &block.state)
        block.stretches[block.stretch - 1].last = True
    flush(g, block)


cdef void run_chunk(const Graph *g, Block *block, Py_ssize_t row, int64_t begin, int64_t end,
                    char *memory) noexcept nogil:
    """Leave the state of a part of a receiver's edges in `memory`."""
    block.state = state_at(g, memory)
    start_state(g, &block.state)
    start_count(g, &block.state)
    open_stretch(g, block, row, False)
    add_edges(g, block, row, begin, end)
    count_edges(g, block)
    flush(g, block)


cdef void merge_chunks(const Graph *g, Block *block, Py_ssize_t row, char *memory,
                       Py_ssize_t count) noexcept nogil:
    """Merge the `count` states of a receiver in order, and finish it."""
    cdef State state = state_at(g, memory), other
    cdef Py_ssize_t width = <Py_ssize_t> g.model.vectors * g.tiles.lanes
    cdef Py_ssize_t real = g.tiles.real, i, h, d
    for i in range(1, count):
        other = state_at(g, memory + i * state_bytes(g))
        for h in range(g.model.heads):
            g.decode.merge(state.m + h * real, state.l + h * real,
                           state.o + h * width * real, other.m + h * real,
                           other.l + h * real, other.o + h * width * real, width)
        for d in range(g.model.edge_dim):
            state.sums[d] += other.sums[d]
        state.count[0] += other.count[0]
    block.state = state
    open_stretch(g, block, row, False)
    if g.loops and row < g.senders:
        add_loop(g, block, row, &state)
    block.stretches[0].last = True
    flush(g, block)
