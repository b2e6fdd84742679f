"""The gradient of attention along edges, a block of edges at a time.

An end of an edge is the *own* row, which is padded once, or the *other* one, read in place.
Scores of up to BLOCK edges are computed again and differentiated together, then added to the
sums of their own rows.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from ruvector._kernels._edges cimport BLOCK, Graph, Stretch, sender_of, up


cdef Py_ssize_t gradient_block_bytes(const Walk *w) noexcept nogil:
    cdef const Graph *g = &w.graph
    cdef Py_ssize_t real = g.tiles.real
    return up(sizeof(GradientBlock), 64) + up(
        BLOCK * (3 * g.padded_row + 2 * g.lds * real) + 2 * g.padded_row
        + 2 * BLOCK * w.whole.products.cols * real, 64
    )


cdef GradientBlock *lay_out_gradient(const Walk *w, char *memory) noexcept nogil:
    cdef const Graph *g = &w.graph
    cdef GradientBlock *block = <GradientBlock *> memory
    cdef Py_ssize_t row = g.padded_row, heads = g.lds * g.tiles.real
    block.count = block.stretch = 0
    block.u = memory + up(sizeof(GradientBlock), 64)
    block.own = block.u + BLOCK * row
    block.sums = block.own + 2 * BLOCK * row
    block.s = block.sums + 2 * row
    block.t = block.s + BLOCK * heads
    block.panel = block.t + BLOCK * heads
    # Lanes beyond the heads are computed, too.
    memset(block.s, 0, 2 * BLOCK * heads)
    return block


cdef void unpad(const Graph *g, const char *row, char *out) noexcept nogil:
    cdef Py_ssize_t real = g.tiles.real, bytes = g.model.channels * real, h
    cdef Py_ssize_t step = <Py_ssize_t> g.model.vectors * g.tiles.lanes * real
    for h in range(g.model.heads):
        memcpy(out + h * bytes, row + h * step, bytes)


cdef void finish_own(const Walk *w, const char *sums, Py_ssize_t row) noexcept nogil:
    unpad(&w.graph, sums, w.out + row * w.out_row)
    if w.message != NULL:
        unpad(&w.graph, sums + w.graph.padded_row, w.message + row * w.message_row)


cdef void add_edge_bias(const Walk *w, GradientBlock *block) noexcept nogil:
    cdef const Graph *g = &w.graph
    cdef Py_ssize_t real = g.tiles.real, h, at
    cdef double bias
    cdef int e
    for e in range(block.count):
        bias = real_at(w.whole.bias, block.places[e], real)
        for h in range(g.model.heads):
            at = e * g.lds + h
            put_real(block.s, at, real, real_at(block.s, at, real) + bias)


cdef void write_edge_bias(const Walk *w, const GradientBlock *block) noexcept nogil:
    cdef const Graph *g = &w.graph
    cdef Py_ssize_t real = g.tiles.real, h
    cdef double total
    cdef int e
    for e in range(block.count):
        total = 0
        for h in range(g.model.heads):
            total += real_at(block.t, e * g.lds + h, real)
        put_real(w.whole.edge_bias, block.places[e], real, total)


cdef void differentiate_features(const Walk *w, GradientBlock *block) noexcept nogil:
    """The block's part of the gradient of W, du^T e, and its edges' own, du W."""
    cdef const Graph *g = &w.graph
    cdef Py_ssize_t real = g.tiles.real, padded = g.padded_row // real, start = 0, bytes
    cdef char *result = block.panel + BLOCK * w.whole.products.cols * real
    cdef int e, cols
    while start < g.model.edge_dim:
        cols = group_columns(w, start)
        bytes = min(<Py_ssize_t> cols, g.model.edge_dim - start) * real
        for e in range(block.count):
            memcpy(block.panel + e * cols * real,
                   <const char *> block.scored[e].features + start * real, bytes)
            memset(block.panel + e * cols * real + bytes, 0, cols * real - bytes)
        w.whole.products.accumulate(block.panel, cols, block.u, padded, block.count, padded,
                                    block.weight + start * g.padded_row)
        if w.whole.features != NULL:
            w.whole.products.scores(w.packed + start * g.padded_row, cols, block.u, padded,
                                    block.count, padded, result)
            for e in range(block.count):
                memcpy(w.whole.features + block.places[e] * w.whole.feature_row
                       + start * real, result + e * cols * real, bytes)
        start += cols


cdef void flush_gradient(const Walk *w, GradientBlock *block) noexcept nogil:
    """Differentiate the edges held and add them to the sums of their own rows."""
    cdef const Graph *g = &w.graph
    cdef const Stretch *stretch
    cdef Py_ssize_t start = 0, heads = g.lds * g.tiles.real
    cdef char *message = block.sums if w.message == NULL else block.sums + g.padded_row
    cdef int i
    if block.count:
        g.tiles.transforms(&g.model, block.scored, block.count, block.u, block.s, g.lds)
        g.tiles.dots(&g.model, block.dotted, block.count, block.t, g.lds)
        if w.whole.bias != NULL:
            add_edge_bias(w, block)
        g.tiles.weigh(&g.model, block.states, block.count, block.s, block.t, g.lds)
    for i in range(block.stretch):
        stretch = block.stretches + i
        if stretch.first:
            memset(block.sums, 0, 2 * g.padded_row)
        if stretch.edges:
            g.tiles.differentiate(&g.model, stretch.edges, block.u + start * g.padded_row,
                                  block.t + start * heads, g.lds, block.sums, block.att)
            if not w.by_receiver:
                g.tiles.accumulate(&g.model, block.dotted + start, stretch.edges,
                                   block.s + start * heads, g.lds, message)
        start += stretch.edges
        if stretch.last:
            finish_own(w, block.sums, stretch.row)
    if w.by_receiver and block.count:
        if w.whole.edge_bias != NULL:
            write_edge_bias(w, block)
        if g.model.edge_dim:
            differentiate_features(w, block)
    block.count = block.stretch = 0


cdef void open_own(const Walk *w, GradientBlock *block, Py_ssize_t row,
                   bint first) noexcept nogil:
    cdef const Graph *g = &w.graph
    cdef char *own
    if block.stretch == BLOCK:
        flush_gradient(w, block)
    own = block.own + 2 * block.stretch * g.padded_row
    g.tiles.pad(&g.model, g.right + row * g.right_row, 1.0, g.shift, own)
    g.tiles.pad(&g.model, w.own_dots + row * w.own_dots_row, 1.0, NULL, own + g.padded_row)
    block.stretches[block.stretch] = Stretch(row, 0, first, False)
    block.stretch += 1


cdef void walk_edges(const Walk *w, GradientBlock *block, Py_ssize_t row, int64_t begin,
                     int64_t end) noexcept nogil:
    """Take edges of one own row, whose stretch is open."""
    cdef const Graph *g = &w.graph
    cdef int64_t i, other, ahead, place, receiver
    cdef char *own
    cdef int e
    for i in range(begin, end):
        if block.count == BLOCK:
            flush_gradient(w, block)
            open_own(w, block, row, False)
        e = block.count
        place = i if w.order == NULL else w.order[i]
        other = sender_of(g, i)
        ahead = sender_of(g, min(i + BLOCK, <int64_t> g.edges - 1))
        receiver = row if w.by_receiver else other
        own = block.own + 2 * (block.stretch - 1) * g.padded_row
        block.places[e] = place
        block.scored[e].left = g.left + other * g.left_row
        block.scored[e].ahead = g.left + ahead * g.left_row
        block.scored[e].right = own
        block.scored[e].features = g.features + place * g.feature_row
        block.dotted[e].left = w.other_dots + other * w.other_dots_row
        block.dotted[e].ahead = w.other_dots + ahead * w.other_dots_row
        block.dotted[e].right = own + g.padded_row
        block.states[e].lse = w.whole.lse + receiver * w.whole.state_row
        block.states[e].delta = w.whole.delta + receiver * w.whole.state_row
        block.stretches[block.stretch - 1].edges += 1
        block.count += 1


cdef void walk_rows(const Walk *w, GradientBlock *block, Py_ssize_t row,
                    Py_ssize_t stop) noexcept nogil:
    """Differentiate whole own rows."""
    cdef const Graph *g = &w.graph
    cdef Py_ssize_t i
    for i in range(row, stop):
        open_own(w, block, i, True)
        walk_edges(w, block, i, g.indptr[i], g.indptr[i + 1])
        block.stretches[block.stretch - 1].last = True
    flush_gradient(w, block)


cdef void walk_chunk(const Walk *w, GradientBlock *block, Py_ssize_t row, int64_t begin,
                     int64_t end) noexcept nogil:
    """Differentiate part of an own row; its sums stay in the block."""
    open_own(w, block, row, True)
    walk_edges(w, block, row, begin, end)
    flush_gradient(w, block)
