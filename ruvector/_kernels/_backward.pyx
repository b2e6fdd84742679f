"""The gradient of the streaming softmax: two passes over the forward tiles.

The first pass (_query_gradients.pyx) owns blocks of query rows and gives dQ (and the sums
behind the gradient of the ALiBi slopes), the second (_key_gradients.pyx) owns blocks of keys,
which lie across the lanes, and gives dK and dV; a third, only where the gradient of a bias is
wanted, adds dS into it. P is recomputed from L.
No two threads write the same row and every sum has one order, so results do not depend on the
number of threads. Seven products instead of the least five buy that; memory is O(rows): D and
L, and the scratch of each thread. The mathematics is in simd/backward.inc.h.

With a ball both passes also take dS through the distances (_ball.pyx), where queries and keys
change places; what they then give for each point is mapped to its row outside of them.
"""

from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdlib cimport free, malloc

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels._gradients cimport Gradients, GradientSegment, aligned, work_bytes
from ruvector._kernels._key_gradients cimport key_block
from ruvector._kernels._openmp cimport team_size, thread_index
from ruvector._kernels._problem cimport Call, Segment, real_at, set_real
from ruvector._kernels._query_gradients cimport query_block

cdef double LOG2E = 1.4426950408889634
# As in the engine: what is too small for threads, and what runs between two signal checks.
cdef double SMALL_WORK = 1e6
cdef double SLAB_WORK = 1e10


cdef void prepare_rows(const Call *call, const Segment *segment, const Gradients *g,
                       const GradientSegment *want, Py_ssize_t head) noexcept nogil:
    """D = dO.O - dL and L in units of log2 for every query of one head."""
    cdef Py_ssize_t i, at
    cdef double lse, delta
    for i in range(segment.lq):
        at = head * segment.lq + i
        lse = real_at(call, segment.lse + head * call.lse_head + i * call.lse_row, 0)
        set_real(call, want.lse2, at, 0 if lse == -INFINITY else lse * LOG2E)
        if call.ball != NULL:
            continue
        delta = g.tiles.row_dot(want.out + head * g.out_head + i * g.out_row,
                                segment.out + head * call.out_head + i * call.out_row,
                                call.dim_v)
        if want.lse != NULL:
            delta -= real_at(call, want.lse + head * g.lse_head + i * g.lse_row, 0)
        set_real(call, want.delta, at, delta)


cdef struct Item:
    Py_ssize_t segment, start
    int head


cdef Py_ssize_t list_items(const Call *call, const Segment *segments, Py_ssize_t count,
                           bint keys, Py_ssize_t step, Item *items) noexcept nogil:
    """List the blocks of query rows or of keys; counts them where `items` is null.

    Last rows and first keys come first: under a causal mask they have the most work, so the
    items that are left when threads come free for the last time are small.
    """
    cdef Py_ssize_t n = 0, s, b, blocks
    cdef int head
    for s in range(count):
        blocks = segments[s].lk if keys else segments[s].lq * call.group
        blocks = (blocks + step - 1) // step
        for head in range(call.kv_heads):
            for b in range(blocks):
                if items != NULL:
                    items[n] = Item(s, (b if keys else blocks - 1 - b) * step, head)
                n += 1
    return n


cdef void run_item(const Call *call, const Segment *segments, const Gradients *g,
                   const GradientSegment *wanted, const Item *item, bint keys,
                   char *memory) noexcept nogil:
    if keys:
        key_block(call, segments + item.segment, g, wanted + item.segment, item.head,
                  item.start, memory)
    else:
        query_block(call, segments + item.segment, g, wanted + item.segment, item.head,
                    item.start, memory, False)


cdef int run_pass(const Call *call, const Segment *segments, const Gradients *g,
                  const GradientSegment *wanted, Py_ssize_t count, bint keys, char *memory,
                  Py_ssize_t size, int threads, double work) except -1 nogil:
    """One pass over blocks of query rows, or over blocks of keys."""
    cdef Py_ssize_t step = call.tiles.cols if keys else (
        call.tiles.cols * call.tiles.query_tiles)
    cdef Py_ssize_t total = list_items(call, segments, count, keys, step, NULL)
    cdef Py_ssize_t start = 0, stop, i, slab
    cdef Item *items = <Item *> malloc(max(total, 1) * sizeof(Item))
    if items == NULL:
        with gil:
            raise MemoryError("no memory for the attention engine's items")
    try:
        list_items(call, segments, count, keys, step, items)
        slab = max(<Py_ssize_t> threads, <Py_ssize_t> (total * (SLAB_WORK / max(work, 1.0))))
        while start < total:
            stop = min(total, start + slab)
            for i in prange(start, stop, schedule="dynamic", num_threads=threads,
                            use_threads_if=threads > 1):
                run_item(call, segments, g, wanted, items + i, keys,
                         memory + thread_index() * size)
            start = stop
            with gil:
                PyErr_CheckSignals()
    finally:
        free(items)
    return 0


cdef int run_bias(const Call *call, const Segment *segments, const Gradients *g,
                  const GradientSegment *wanted, Py_ssize_t count, char *memory,
                  Py_ssize_t size, int threads) except -1 nogil:
    """Add dS of all segments and heads, in order, each thread to query rows of its own.

    Where the bias has no axis of queries all rows share its memory, and one thread adds.
    """
    cdef Py_ssize_t step = call.tiles.cols * call.tiles.query_tiles, most = 0, blocks, s, b
    if g.bias_row == 0:
        threads = 1
    for s in range(count):
        most = max(most, segments[s].lq * call.group)
    blocks = (most + step - 1) // step
    # A block's rows are queries start // group ..: blocks share none where group divides step.
    if step % call.group != 0:
        threads = 1
    for b in prange(blocks, schedule="dynamic", num_threads=threads,
                    use_threads_if=threads > 1):
        bias_blocks(call, segments, g, wanted, count, b * step, memory + thread_index() * size)
    with gil:
        PyErr_CheckSignals()
    return 0


cdef void bias_blocks(const Call *call, const Segment *segments, const Gradients *g,
                      const GradientSegment *wanted, Py_ssize_t count, Py_ssize_t start,
                      char *memory) noexcept nogil:
    cdef Py_ssize_t s
    cdef int head
    for s in range(count):
        if start < segments[s].lq * call.group:
            for head in range(call.kv_heads):
                query_block(call, segments + s, g, wanted + s, head, start, memory, True)


cdef int run_backward(const Call *call, const Segment *segments, const Gradients *gradients,
                      const GradientSegment *wanted, Py_ssize_t count,
                      int threads) except -1 nogil:
    """Compute the wanted gradients of every segment."""
    cdef Py_ssize_t size = aligned(work_bytes(call)), s, h
    cdef double work = 0
    cdef char *memory
    for s in range(count):
        work += (<double> segments[s].lq * call.heads * (segments[s].lk + 1)
                 * (call.dim + call.dim_v))
    threads = 1 if work < SMALL_WORK else team_size(threads, 1 << 30)
    memory = <char *> malloc(threads * size)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the attention engine's scratch")
    try:
        for s in range(count):
            for h in prange(call.heads, schedule="static", num_threads=threads,
                            use_threads_if=threads > 1):
                prepare_rows(call, segments + s, gradients, wanted + s, h)
        if wanted[0].q != NULL or wanted[0].slopes != NULL or wanted[0].ball.q != NULL:
            run_pass(call, segments, gradients, wanted, count, False, memory, size, threads,
                     work)
        if wanted[0].k != NULL or wanted[0].v != NULL:
            run_pass(call, segments, gradients, wanted, count, True, memory, size, threads,
                     work)
        if wanted[0].bias != NULL:
            run_bias(call, segments, gradients, wanted, count, memory, size, threads)
    finally:
        free(memory)
    return 0
