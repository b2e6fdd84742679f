"""The engine of linear attention: who computes what.

Heads go by in slabs. In a slab, items of one head, a group of features and a part of the keys
sum their features; each head's parts are merged in order; items of one head and a block of
queries read the result. A causal sequence is one item, cut over positions only to look for
Ctrl-C. Cuts look at shapes alone, and each item owns what it writes, so that results do not
depend on the number of threads. Memory: sums of at most 16 heads, and a scratch a thread.
"""

from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels._causal cimport (
    CausalScratch, Prefix, attend_positions, lay_out_causal, lay_out_prefix,
)
from ruvector._kernels._features cimport (
    Map, Part, Reader, Rows, Scratch, Sums, absorb_keys, aligned, feature_tiles, fold, lay_out,
    pack_projection, packed_bytes, prepare, read_rows, take,
)
from ruvector._kernels._openmp cimport team_size, thread_index

# Multiply-adds below which waking a thread costs more than it saves, and multiply-adds between
# two looks at pending signals.
cdef double SMALL_WORK = 1e6
cdef double SLAB_WORK = 1e10
# Heads in one slab, bytes of their sums, and parts into which keys are cut where heads alone
# are too few to be shared among threads.
cdef Py_ssize_t SLAB_HEADS = 16
cdef Py_ssize_t SLAB_BYTES = 1 << 25
cdef Py_ssize_t PARTS = 32
cdef Py_ssize_t PART_KEYS = 4096
# Tiles of features that share a chunk of keys, and tiles of queries in one item.
cdef Py_ssize_t GROUP_TILES = 4
cdef Py_ssize_t QUERY_TILES = 4


cdef struct Plan:
    Py_ssize_t slab, groups, parts, part_keys, blocks, block_rows
    Py_ssize_t sums_size, part_size, reader_size, scratch_size
    int threads
    char *sums
    char *part_memory
    char *readers
    char *scratch


cdef Rows rows_of(const Call *call, Py_ssize_t index) noexcept nogil:
    """The sequence of one head, heads counted through the batch."""
    cdef Rows rows = call.first
    cdef Py_ssize_t b = index // call.heads, h = index % call.heads
    if call.reads:
        rows.q += b * call.q_batch + h * call.q_head
        rows.out += b * call.out_batch + h * call.out_head
    if rows.lse != NULL:
        rows.lse += b * call.lse_batch + h * call.lse_head
    if call.absorbs:
        rows.k += b * call.k_batch + h * call.k_head
        rows.v += b * call.v_batch + h * call.v_head
    if rows.bias != NULL:
        rows.bias += b * call.bias_batch
    return rows


cdef Sums sums_of(const Map *map, const Sums *first, Py_ssize_t index) noexcept nogil:
    cdef Sums sums = first[0]
    sums.numerator += index * map.features * map.dim_v
    sums.denominator += index * map.features
    sums.stabiliser += index
    sums.value_sum += index * map.dim_v
    sums.count += index
    return sums


cdef Py_ssize_t lay_out_sums(const Map *map, Py_ssize_t memory, Sums *sums) noexcept nogil:
    cdef Py_ssize_t at = memory
    sums.numerator = <double *> take(&at, map.features * map.dim_v * sizeof(double))
    sums.denominator = <double *> take(&at, map.features * sizeof(double))
    sums.value_sum = <double *> take(&at, map.dim_v * sizeof(double))
    sums.stabiliser = <double *> take(&at, sizeof(double))
    sums.count = <int64_t *> take(&at, sizeof(int64_t))
    return at


cdef Py_ssize_t lay_out_part(const Map *map, Py_ssize_t memory, Part *part) noexcept nogil:
    cdef Py_ssize_t at = memory
    cdef Py_ssize_t features = feature_tiles(map) * map.reals.cols * map.reals.real
    part.rows = take(&at, features * map.dim_v)
    part.tops = take(&at, features)
    part.weights = take(&at, features)
    part.value_sum = <double *> take(&at, map.dim_v * sizeof(double))
    part.count = <int64_t *> take(&at, sizeof(int64_t))
    return at


cdef Py_ssize_t lay_out_reader(const Map *map, Py_ssize_t memory,
                               Reader *reader) noexcept nogil:
    cdef Py_ssize_t at = memory, width = map.dim_v + 1
    reader.rows = take(&at, map.features * width * map.reals.real)
    reader.shares = take(&at, width * map.reals.real)
    reader.work = <double *> take(&at, 2 * width * sizeof(double))
    reader.stabiliser = <double *> take(&at, sizeof(double))
    return at


cdef inline Py_ssize_t divided(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef void fill_plan(const Call *call, Plan *plan) noexcept nogil:
    cdef const Map *map = &call.map
    cdef Py_ssize_t count = call.batch * call.heads, one
    cdef Prefix prefix
    cdef CausalScratch causal
    cdef Scratch scratch
    cdef Sums sums
    cdef Part part
    cdef Reader reader
    plan.groups = divided(feature_tiles(map), GROUP_TILES)
    plan.sums_size = lay_out_sums(map, 0, &sums)
    plan.reader_size = lay_out_reader(map, 0, &reader)
    plan.scratch_size = lay_out(map, 0, &scratch)
    if call.causal:
        plan.sums_size = lay_out_prefix(map, 0, &prefix)
        plan.scratch_size += lay_out_causal(map, 0, &causal)
        plan.reader_size = plan.part_size = 0
        plan.parts = 1
    else:
        plan.part_size = lay_out_part(map, 0, &part)
        plan.parts = max(1, min(divided(call.first.lk, PART_KEYS),
                                PARTS // (plan.groups * min(count, SLAB_HEADS))))
    plan.part_keys = max(1, divided(call.first.lk, plan.parts))
    one = plan.sums_size + plan.reader_size + plan.parts * plan.part_size
    plan.slab = max(1, min(count, min(SLAB_HEADS, SLAB_BYTES // one)))
    plan.block_rows = QUERY_TILES * map.reals.cols
    plan.blocks = divided(call.first.lq, plan.block_rows) if call.reads else 0


cdef void absorb_item(const Call *call, const Plan *plan, Py_ssize_t start,
                      Py_ssize_t item) noexcept nogil:
    """Sum one group of features over one part of the keys of one head."""
    cdef Py_ssize_t part_index = item % plan.parts
    cdef Py_ssize_t group = item // plan.parts % plan.groups
    cdef Py_ssize_t head = item // (plan.parts * plan.groups)
    cdef Py_ssize_t tile = group * GROUP_TILES
    cdef Py_ssize_t tile_count = min(GROUP_TILES, feature_tiles(&call.map) - tile)
    cdef Py_ssize_t begin = min(call.first.lk, part_index * plan.part_keys)
    cdef Rows rows = rows_of(call, start + head)
    cdef Scratch scratch
    cdef Part part
    lay_out(&call.map, <Py_ssize_t> plan.scratch + thread_index() * plan.scratch_size, &scratch)
    lay_out_part(&call.map, <Py_ssize_t> plan.part_memory
                 + (head * plan.parts + part_index) * plan.part_size, &part)
    absorb_keys(&call.map, &rows, tile, tile_count, begin,
                min(call.first.lk, begin + plan.part_keys), &scratch, &part)


cdef void finish_head(const Call *call, const Plan *plan, Py_ssize_t start,
                      Py_ssize_t head) noexcept nogil:
    """Merge the parts of one head into its state, and prepare it for queries."""
    cdef const Map *map = &call.map
    cdef Sums sums
    cdef Part part
    cdef Reader reader
    cdef Py_ssize_t i
    if call.sums.count != NULL:
        sums = sums_of(map, &call.sums, start + head)
    else:
        lay_out_sums(map, <Py_ssize_t> plan.sums + head * plan.sums_size, &sums)
        memset(sums.numerator, 0, plan.sums_size)
        sums.stabiliser[0] = -INFINITY if map.exponential else 0.0
    if call.absorbs:
        for i in range(plan.parts):
            lay_out_part(map, <Py_ssize_t> plan.part_memory
                         + (head * plan.parts + i) * plan.part_size, &part)
            fold(map, &part, &sums)
    if call.reads:
        lay_out_reader(map, <Py_ssize_t> plan.readers + head * plan.reader_size, &reader)
        prepare(map, &sums, &reader)


cdef void read_item(const Call *call, const Plan *plan, Py_ssize_t start,
                    Py_ssize_t item) noexcept nogil:
    """Attend from one block of queries of one head."""
    cdef Py_ssize_t head = item // plan.blocks
    cdef Py_ssize_t row = item % plan.blocks * plan.block_rows
    cdef Rows rows = rows_of(call, start + head)
    cdef Scratch scratch
    cdef Reader reader
    lay_out(&call.map, <Py_ssize_t> plan.scratch + thread_index() * plan.scratch_size, &scratch)
    lay_out_reader(&call.map, <Py_ssize_t> plan.readers + head * plan.reader_size, &reader)
    read_rows(&call.map, &rows, &reader, row, min(call.first.lq, row + plan.block_rows),
              &scratch)


cdef void causal_item(const Call *call, const Plan *plan, Prefix *prefixes, Py_ssize_t start,
                      Py_ssize_t head, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Walk some positions of one head."""
    cdef Py_ssize_t at = <Py_ssize_t> plan.scratch + thread_index() * plan.scratch_size
    cdef Rows rows = rows_of(call, start + head)
    cdef Scratch scratch
    cdef CausalScratch causal
    at = lay_out(&call.map, at, &scratch)
    lay_out_causal(&call.map, at, &causal)
    attend_positions(&call.map, &rows, prefixes + head, begin, end, &scratch, &causal)


cdef int look_for_signals() except -1 nogil:
    with gil:
        PyErr_CheckSignals()
    return 0


cdef Py_ssize_t slab_items(const Plan *plan, double work) noexcept nogil:
    """Items of that much work between two looks at pending signals."""
    return max(<Py_ssize_t> plan.threads, <Py_ssize_t> (SLAB_WORK / max(work, 1.0)))


cdef int run_slab(const Call *call, const Plan *plan, Py_ssize_t start,
                  Py_ssize_t heads) except -1 nogil:
    """All of some heads, not causal."""
    cdef Py_ssize_t width = call.map.dim + call.map.dim_v, first = 0, last, i, items, step
    cdef int threads = plan.threads
    if call.absorbs:
        items = heads * plan.groups * plan.parts
        step = slab_items(plan, <double> plan.part_keys * width * call.map.features
                          / plan.groups)
        while first < items:
            last = min(items, first + step)
            for i in prange(first, last, schedule="dynamic", num_threads=threads,
                            use_threads_if=threads > 1):
                absorb_item(call, plan, start, i)
            first = last
            look_for_signals()
    for i in prange(heads, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        finish_head(call, plan, start, i)
    items = heads * plan.blocks
    step = slab_items(plan, <double> plan.block_rows * width * call.map.features)
    first = 0
    while first < items:
        last = min(items, first + step)
        for i in prange(first, last, schedule="dynamic", num_threads=threads,
                        use_threads_if=threads > 1):
            read_item(call, plan, start, i)
        first = last
        look_for_signals()
    return 0


cdef int run_causal_slab(const Call *call, const Plan *plan, Py_ssize_t start,
                         Py_ssize_t heads) except -1 nogil:
    """All positions of some heads."""
    cdef Py_ssize_t width = call.map.dim + call.map.dim_v, lk = call.first.lk, begin = 0, i
    cdef Py_ssize_t step = slab_items(plan, 2.0 * heads * width * call.map.features)
    cdef int threads = plan.threads
    cdef Prefix prefixes[16]
    for i in range(heads):
        lay_out_prefix(&call.map, <Py_ssize_t> plan.sums + i * plan.sums_size, prefixes + i)
    while begin < lk:
        for i in prange(heads, schedule="dynamic", num_threads=threads,
                        use_threads_if=threads > 1):
            causal_item(call, plan, prefixes, start, i, begin, min(lk, begin + step))
        begin = begin + step
        look_for_signals()
    return 0


cdef void fill_blind_rows(const Call *call) noexcept nogil:
    """Causal queries that stand before the first key see nothing."""
    cdef Py_ssize_t index, i
    cdef Rows rows
    for index in range(call.batch * call.heads):
        rows = rows_of(call, index)
        for i in range(rows.lq - rows.lk):
            memset(rows.out + i * rows.out_row, 0, call.map.dim_v * call.map.stored.item)
            if rows.lse != NULL and call.map.reals.real == sizeof(double):
                (<double *> (rows.lse + i * rows.lse_row))[0] = -INFINITY
            elif rows.lse != NULL:
                (<float *> (rows.lse + i * rows.lse_row))[0] = -INFINITY


cdef int run(Call *call, int threads) except -1 nogil:
    cdef Map *map = &call.map
    cdef Plan plan
    cdef Scratch scratch
    cdef Py_ssize_t count = call.batch * call.heads, start = 0, heads, items, at
    cdef Py_ssize_t width = map.dim + map.dim_v, rows = call.first.lk + call.first.lq
    cdef char *memory
    fill_plan(call, &plan)
    items = plan.slab if call.causal else plan.slab * max(plan.groups * plan.parts,
                                                          plan.blocks)
    plan.threads = 1
    if <double> count * rows * width * map.features >= SMALL_WORK:
        plan.threads = team_size(threads, items)
    memory = <char *> malloc(
        64 + packed_bytes(map) + plan.threads * plan.scratch_size
        + plan.slab * (plan.sums_size + plan.reader_size + plan.parts * plan.part_size))
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the sums of linear attention")
    at = aligned(<Py_ssize_t> memory)
    map.packed = take(&at, packed_bytes(map))
    plan.scratch = take(&at, plan.threads * plan.scratch_size)
    plan.sums = take(&at, plan.slab * plan.sums_size)
    plan.readers = take(&at, plan.slab * plan.reader_size)
    plan.part_memory = take(&at, plan.slab * plan.parts * plan.part_size)
    if call.absorbs:
        lay_out(map, <Py_ssize_t> plan.scratch, &scratch)
        pack_projection(map, scratch.rows)
    if call.causal:
        fill_blind_rows(call)
    try:
        while start < count:
            heads = min(plan.slab, count - start)
            if call.causal:
                run_causal_slab(call, &plan, start, heads)
            else:
                run_slab(call, &plan, start, heads)
            start += heads
    finally:
        free(memory)
    return 0
