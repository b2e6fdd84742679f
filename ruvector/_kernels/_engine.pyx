"""The streaming softmax engine: which driver a sequence takes, and who computes what.

A sequence of few queries is decoded (bound by memory, cut over keys), any other prefilled
(bound by arithmetic, cut over blocks of query rows); the choice looks at shapes alone. Work
items go to threads as these come free; each item owns its output rows or its chunk's state,
so results do not depend on the number of threads. Between slabs of items Ctrl-C is honoured
where the caller wants that; nothing else here needs the GIL.
Memory: one scratch a thread, and (m, l, o) for each chunk of a decoded sequence.
"""

from cython.parallel cimport prange
from libc.stdlib cimport free, malloc

from ruvector._kernels cimport _decode, _prefill
from ruvector._kernels._openmp cimport team_size, thread_index
from ruvector._kernels._problem cimport (
    Bounds, Call, Segment, any_visible, query_tiles, segment_bounds,
)

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept

# Query rows of one key/value head up to which a sequence is decoded. Measured: at 6 rows of
# 64 both drivers take the same time over keys in cache.
cdef Py_ssize_t DECODE_ROWS = 6
# Multiply-adds below which waking a thread costs more than it saves, and multiply-adds
# between two looks at pending signals.
cdef double SMALL_WORK = 1e6
cdef double SLAB_WORK = 1e10


cdef enum:
    STACK_BYTES = 16384  # small beside the 128 KB that a thread's stack may have


cdef struct Item:
    Py_ssize_t segment
    Py_ssize_t start        # first query row, or index of the chunk; of a group, its chunks
    Py_ssize_t state        # byte offset of a chunk's state, or of a group's first
    int head                # first key/value head
    int heads               # key/value heads handled together; 0 for prefill


cdef struct Plan:
    Item *items
    Py_ssize_t count
    Item *groups            # decoded (segment, heads) whose chunks are to be merged
    Py_ssize_t groups_count
    char *states
    char *scratch
    Py_ssize_t states_size, scratch_size
    double work


cdef inline int heads_together(const Call *call, const Segment *segment) noexcept nogil:
    """Key/value heads that lie side by side within a row, or 1."""
    if call.kv_heads == 1 or segment.lk < 2:
        return 1
    if (0 < call.k_head < call.k_row and 0 < call.v_head < call.v_row
            and call.kv_heads * call.k_head <= call.k_row
            and call.kv_heads * call.v_head <= call.v_row):
        return call.kv_heads
    return 1


cdef inline bint decoded(const Call *call, const Segment *segment) noexcept nogil:
    return segment.lq * call.group <= DECODE_ROWS


cdef inline Py_ssize_t chunks_of(const Call *call, const Segment *segment,
                                 int heads) noexcept nogil:
    cdef Py_ssize_t size = _decode.chunk_keys(call, heads)
    return max(1, (segment.lk + size - 1) // size)


cdef int fill_plan(const Call *call, const Segment *segments, Py_ssize_t count, Plan *plan,
                   bint count_only) noexcept nogil:
    """Count the items of the call, then list them."""
    cdef Py_ssize_t n = 0, groups = 0, s, rows, start, step, chunk, chunks
    cdef Py_ssize_t states = 0, scratch = 0, size, listed
    cdef Bounds hull
    cdef int h, head, heads
    cdef double work = 0, width = call.dim + call.dim_v
    cdef const Segment *segment
    if call.ball != NULL:
        width += call.ball.dim + call.ball.dim_v
    step = call.tiles.cols * query_tiles(call)
    for s in range(count):
        segment = segments + s
        rows = segment.lq * call.group
        if rows == 0:
            continue
        work += <double> rows * call.kv_heads * (segment.lk + 1) * width
        heads = heads_together(call, segment) if decoded(call, segment) else 1
        for h in range(call.kv_heads // heads):
            head = h * heads
            if not decoded(call, segment):
                scratch = max(scratch, _prefill.scratch_bytes(call))
                # Last rows first: a causal mask shows them the most keys, so the items that
                # are left when threads come free for the last time are small.
                start = (rows - 1) // step * step
                while start >= 0:
                    if not count_only:
                        plan.items[n] = Item(s, start, 0, head, 0)
                    n += 1
                    start -= step
                continue
            scratch = max(scratch, _decode.scratch_bytes(call, rows * heads))
            chunks = chunks_of(call, segment, heads)
            size = _decode.chunk_keys(call, heads)
            hull = segment_bounds(call, segment)
            listed = 0
            for chunk in range(chunks):
                # The first chunk starts the state, the others only where they are seen.
                if chunk > 0 and not any_visible(&hull, chunk * size, (chunk + 1) * size):
                    continue
                if not count_only:
                    plan.items[n] = Item(
                        s, chunk, states + listed * _decode.state_bytes(call, rows * heads),
                        head, heads)
                n += 1
                listed += 1
            if not count_only:
                plan.groups[groups] = Item(s, listed, states, head, heads)
            groups += 1
            states += listed * _decode.state_bytes(call, rows * heads)
    plan.count = n
    plan.groups_count = groups
    plan.states_size = states
    plan.scratch_size = (scratch + 63) & ~<Py_ssize_t> 63
    plan.work = work
    return 0


cdef void run_item(const Call *call, const Segment *segments, const Plan *plan,
                   const Item *item, char *memory) noexcept nogil:
    cdef const Segment *segment = segments + item.segment
    cdef _prefill.Scratch scratch
    cdef Py_ssize_t size
    if item.heads == 0:
        _prefill.lay_out(call, memory, &scratch)
        _prefill.attend_block(call, segment, item.head, item.start, &scratch)
        return
    size = _decode.chunk_keys(call, item.heads)
    _decode.attend_chunk(
        call, segment, item.head, item.heads, item.start * size,
        min(segment.lk, (item.start + 1) * size),
        plan.states + item.state, memory,
    )


cdef void finish_group(const Call *call, const Segment *segments, const Plan *plan,
                       const Item *group) noexcept nogil:
    _decode.finish_rows(call, segments + group.segment, group.head, group.heads,
                        plan.states + group.state, group.start)


cdef bint signalled() noexcept nogil:
    """Run pending signal handlers; returns whether one raised, its exception then set."""
    with gil:
        return PyErr_CheckSignals() != 0


cdef int run_plan(const Call *call, const Segment *segments, const Plan *plan, int threads,
                  bint heed_signals) noexcept nogil:
    cdef Py_ssize_t start = 0, stop, i, slab = plan.count
    if heed_signals:
        slab = max(<Py_ssize_t> threads, <Py_ssize_t> (
            plan.count * (SLAB_WORK / max(plan.work, 1.0))))
    if threads == 1 and (plan.work < SLAB_WORK or not heed_signals):
        # Not thread_index(): the caller may be one thread of an OpenMP team of its own.
        for i in range(plan.count):
            run_item(call, segments, plan, plan.items + i, plan.scratch)
        for i in range(plan.groups_count):
            finish_group(call, segments, plan, plan.groups + i)
        return 0
    while start < plan.count:
        stop = min(plan.count, start + slab)
        for i in prange(start, stop, schedule="dynamic", num_threads=threads,
                        use_threads_if=threads > 1):
            run_item(call, segments, plan, plan.items + i,
                     plan.scratch + thread_index() * plan.scratch_size)
        start = stop
        if heed_signals and signalled():
            return INTERRUPTED
    for i in prange(plan.groups_count, schedule="static", num_threads=threads,
                    use_threads_if=threads > 1):
        finish_group(call, segments, plan, plan.groups + i)
    return 0


cdef bint run_brief(const Call *call, const Segment *segment) noexcept nogil:
    """Decode one short sequence on the stack, without a plan; returns whether it was short."""
    cdef char memory[STACK_BYTES]
    cdef Py_ssize_t rows = segment.lq * call.group, size
    cdef int heads, head
    if not 0 < rows <= DECODE_ROWS:
        return False
    heads = heads_together(call, segment)
    size = _decode.state_bytes(call, rows * heads)
    if (size + _decode.scratch_bytes(call, rows * heads) > STACK_BYTES
            or chunks_of(call, segment, heads) > 1):
        return False
    for head in range(0, call.kv_heads // heads):
        _decode.attend_chunk(call, segment, head * heads, heads, 0, segment.lk, memory,
                             memory + size)
        _decode.finish_rows(call, segment, head * heads, heads, memory, 1)
    return True


cdef int compute(const Call *call, const Segment *segments, Py_ssize_t count, int threads,
                 bint heed_signals) noexcept nogil:
    """Compute output, L and weights of every segment; returns 0 or a failure."""
    cdef Plan plan
    cdef char *memory
    cdef Py_ssize_t lists
    cdef int failure
    if count == 1 and run_brief(call, segments):
        return 0
    fill_plan(call, segments, count, &plan, True)
    threads = 1 if plan.work < SMALL_WORK else team_size(threads, plan.count)
    lists = (plan.count + plan.groups_count) * sizeof(Item)
    lists = (lists + 63) & ~<Py_ssize_t> 63
    memory = <char *> malloc(lists + plan.states_size + 64 + threads * plan.scratch_size)
    if memory == NULL:
        return NO_MEMORY
    plan.items = <Item *> memory
    plan.groups = plan.items + plan.count
    plan.states = memory + lists
    plan.scratch = <char *> ((<Py_ssize_t> plan.states + plan.states_size + 63)
                             & ~<Py_ssize_t> 63)
    fill_plan(call, segments, count, &plan, False)
    failure = run_plan(call, segments, &plan, threads, heed_signals)
    free(memory)
    return failure


cdef int run(const Call *call, const Segment *segments, Py_ssize_t count,
             int threads) except -1 nogil:
    """Compute every segment, interruptible; a failure is an exception."""
    cdef int failure = compute(call, segments, count, threads, True)
    if failure == NO_MEMORY:
        with gil:
            raise MemoryError("no memory for the attention engine's scratch")
    return -1 if failure == INTERRUPTED else 0
