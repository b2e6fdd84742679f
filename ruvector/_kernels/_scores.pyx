"""What is read off the scores themselves: the weights, and the k largest of them.

Both walk the score tiles of the prefill driver, turned back so that a row's scores lie side
by side. `run_weights` writes exp(s - L) for every key: quadratic on purpose. `run_top_k`
keeps, for each row, a heap of the k best keys seen so far whose root is the worst of them:
O(k) memory a row, O(log k) for a key that enters and one comparison for one that does not.
It takes scores in natural units: what is exact in q.k stays exact, and ties are ties.
"""

from cython.parallel cimport prange
from libc.math cimport INFINITY, isnan
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels cimport _ball, _prefill
from ruvector._kernels._dispatch cimport RV_F32, RV_F64, rv_softmax_tiles, tiles
from ruvector._kernels._openmp cimport team_size, thread_index
from ruvector._kernels._prefill cimport Scratch, Tile
from ruvector._kernels._problem cimport Call, Segment, query_tiles, real_at, set_real

cdef double LOG2E = 1.4426950408889634
# As in the engine: what is too small for threads, and what runs between two signal checks.
cdef double SMALL_WORK = 1e6
cdef double SLAB_WORK = 1e10


cdef struct Work:
    # One thread's memory: the prefill scratch, the tile turned back, where each lane's row
    # of it goes, how many keys each lane's heap holds, and a row of ones.
    Scratch scratch
    char *turned
    char *ones
    void **turned_rows
    Py_ssize_t *sizes


ctypedef void (*visit_tile)(const Call *call, const Segment *segment, const Ranking *ranking,
                            int kv_head, Py_ssize_t start, int index,
                            Work *work) noexcept nogil


cdef Py_ssize_t work_bytes(const Call *call) noexcept nogil:
    cdef const rv_softmax_tiles *t = call.tiles
    return (_prefill.scratch_bytes(call) + 2 * 64
            + t.cols * (t.key_tile * t.real + sizeof(double) + sizeof(void *)
                        + sizeof(Py_ssize_t)))


cdef void lay_out(const Call *call, char *memory, Work *work) noexcept nogil:
    cdef const rv_softmax_tiles *t = call.tiles
    cdef int lane
    _prefill.lay_out(call, memory, &work.scratch)
    memory += _prefill.scratch_bytes(call)
    work.ones = <char *> ((<Py_ssize_t> memory + 63) & ~<Py_ssize_t> 63)
    work.turned_rows = <void **> (work.ones + t.cols * sizeof(double))
    work.sizes = <Py_ssize_t *> (work.turned_rows + t.cols)
    work.turned = <char *> (work.sizes + t.cols)
    for lane in range(t.cols):
        set_real(call, work.ones, lane, 1.0)
        work.turned_rows[lane] = work.turned + lane * t.key_tile * t.real


cdef int score_keys(const Call *call, const Segment *segment, int kv_head, Py_ssize_t start,
                    int index, int64_t first_key, Work *work) noexcept nogil:
    """Score up to a key tile of keys against tile `index`; returns their number."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef int nk = <int> min(<int64_t> t.key_tile, segment.lk - first_key)
    cdef const char *keys = segment.k + kv_head * call.k_head + first_key * call.k_row
    cdef Py_ssize_t ldk = call.k_row // t.item
    if t.load_keys != NULL or call.rotary != NULL:
        _prefill.load_keys(call, segment, kv_head, first_key, nk, work.scratch.keys)
        keys = work.scratch.keys
        ldk = call.dim
    if call.ball != NULL:
        _ball.load_keys(call, segment, kv_head, first_key, nk, &work.scratch.ball)
    _prefill.score_tile(call, segment, kv_head, start, work.scratch.tiles + index, first_key,
                        nk, keys, ldk, &work.scratch)
    return nk


cdef void turn(const Call *call, const Tile *tile, int nk, void *const *rows,
               const Work *work) noexcept nogil:
    """Write the scores of each lane to its row: the output transposed, its sums all one."""
    cdef int dtype = RV_F64 if call.tiles.real == sizeof(double) else RV_F32
    tiles().softmax[dtype].finish(
        work.scratch.s, NULL, work.ones, tile.cols, tile.rows, nk, rows, NULL)


cdef inline char *row_of(const Call *call, char *array, Py_ssize_t head_stride,
                         Py_ssize_t row_stride, int kv_head, Py_ssize_t row) noexcept nogil:
    """Address of a packed row's entry in an array of shape (heads, lq, ...)."""
    cdef Py_ssize_t head = kv_head * call.group + row % call.group
    return array + head * head_stride + (row // call.group) * row_stride


cdef void weigh_tile(const Call *call, const Segment *segment, const Ranking *ranking,
                     int kv_head, Py_ssize_t start, int index, Work *work) noexcept nogil:
    """Write exp(s - L) of every key for the rows of one tile.

    m and l are of these very scores, so that their rounding cancels in the quotient.
    """
    cdef const rv_softmax_tiles *t = call.tiles
    cdef const Tile *tile = work.scratch.tiles + index
    cdef int64_t first_key = 0
    cdef int nk, lane
    while first_key < segment.lk:
        nk = score_keys(call, segment, kv_head, start, index, first_key, work)
        for lane in range(tile.rows):
            work.scratch.outs[lane] = first_key * t.real + row_of(
                call, segment.out, call.out_head, call.out_row, kv_head, start + lane)
        turn(call, tile, nk, work.scratch.outs, work)
        t.update(work.scratch.s, nk, tile.cols, tile.m, tile.l, tile.o, 0)
        first_key += nk
    for lane in range(tile.rows):
        call.decode.probabilities(
            row_of(call, segment.out, call.out_head, call.out_row, kv_head, start + lane),
            segment.lk, real_at(call, tile.m, lane), real_at(call, tile.l, lane), 1.0)


cdef inline bint worse(const Call *call, const char *scores, const int64_t *indices,
                       Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """Does entry a rank behind entry b: a lower score, or the same at a later key?"""
    cdef double left = real_at(call, scores, a), right = real_at(call, scores, b)
    return left < right or (left == right and indices[a] > indices[b])


cdef void sift_down(const Call *call, char *scores, int64_t *indices, Py_ssize_t at,
                    Py_ssize_t size) noexcept nogil:
    """Restore the heap below `at`: no entry worse than its parent."""
    cdef Py_ssize_t child
    cdef double score
    cdef int64_t index
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and worse(call, scores, indices, child + 1, child):
            child += 1
        if not worse(call, scores, indices, child, at):
            return
        score = real_at(call, scores, at)
        index = indices[at]
        set_real(call, scores, at, real_at(call, scores, child))
        indices[at] = indices[child]
        set_real(call, scores, child, score)
        indices[child] = index
        at = child


cdef void offer(const Call *call, char *scores, int64_t *indices, Py_ssize_t k,
                Py_ssize_t *size, double score, int64_t key) noexcept nogil:
    """Let a key compete for one of the k places; keys come in ascending order."""
    cdef Py_ssize_t i
    if size[0] < k:
        set_real(call, scores, size[0], score)
        indices[size[0]] = key
        size[0] += 1
        if size[0] == k:
            for i in range(k // 2, -1, -1):
                sift_down(call, scores, indices, i, k)
    elif score > real_at(call, scores, 0):
        set_real(call, scores, 0, score)
        indices[0] = key
        sift_down(call, scores, indices, 0, k)


cdef void rank(const Call *call, char *scores, int64_t *indices, Py_ssize_t k,
               Py_ssize_t size, double m, double l) noexcept nogil:
    """Sort the heap, best first, turn scores into weights, and mark the empty places."""
    cdef Py_ssize_t i
    cdef double score
    cdef int64_t index
    if size < k:
        for i in range(size // 2, -1, -1):
            sift_down(call, scores, indices, i, size)
    for i in range(size - 1, 0, -1):
        score = real_at(call, scores, 0)
        index = indices[0]
        set_real(call, scores, 0, real_at(call, scores, i))
        indices[0] = indices[i]
        set_real(call, scores, i, score)
        indices[i] = index
        sift_down(call, scores, indices, 0, i)
    call.decode.probabilities(scores, size, m, l, LOG2E)
    for i in range(size, k):
        set_real(call, scores, i, 0.0)
        indices[i] = -1


cdef void rank_tile(const Call *call, const Segment *segment, const Ranking *ranking,
                    int kv_head, Py_ssize_t start, int index, Work *work) noexcept nogil:
    """Find the k best keys and their weights for the rows of one tile."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef const Tile *tile = work.scratch.tiles + index
    cdef int64_t first_key = 0
    cdef int64_t *indices
    cdef char *scores
    cdef int nk, lane, j
    cdef double score
    memset(work.sizes, 0, t.cols * sizeof(Py_ssize_t))
    while first_key < segment.lk:
        nk = score_keys(call, segment, kv_head, start, index, first_key, work)
        turn(call, tile, nk, work.turned_rows, work)
        for lane in range(tile.rows):
            scores = row_of(call, ranking.weights, ranking.weight_head, ranking.weight_row,
                            kv_head, start + lane)
            indices = <int64_t *> row_of(call, ranking.indices, ranking.index_head,
                                         ranking.index_row, kv_head, start + lane)
            for j in range(nk):
                score = real_at(call, <char *> work.turned_rows[lane], j)
                if score != -INFINITY:
                    # A NaN makes its row NaN as a whole: let it come first.
                    offer(call, scores, indices, ranking.k, work.sizes + lane,
                          INFINITY if isnan(score) else score, first_key + j)
        t.multiply(work.scratch.s, nk, tile.cols, LOG2E)
        t.update(work.scratch.s, nk, tile.cols, tile.m, tile.l, tile.o, 0)
        first_key += nk
    for lane in range(tile.rows):
        scores = row_of(call, ranking.weights, ranking.weight_head, ranking.weight_row,
                        kv_head, start + lane)
        indices = <int64_t *> row_of(call, ranking.indices, ranking.index_head,
                                     ranking.index_row, kv_head, start + lane)
        rank(call, scores, indices, ranking.k, work.sizes[lane],
             real_at(call, tile.m, lane), real_at(call, tile.l, lane))


cdef void visit_block(const Call *call, const Segment *segment, const Ranking *ranking,
                      int kv_head, Py_ssize_t start, char *memory,
                      visit_tile visit) noexcept nogil:
    cdef Work work
    cdef int i, count
    lay_out(call, memory, &work)
    count = _prefill.load_queries(call, segment, kv_head, start, &work.scratch)
    for i in range(count):
        visit(call, segment, ranking, kv_head, start + i * call.tiles.cols, i, &work)


cdef int visit_all(const Call *call, const Segment *segments, const Ranking *rankings,
                   Py_ssize_t count, int threads, visit_tile visit) except -1 nogil:
    """Visit every tile of `count` segments of equal shapes."""
    cdef Py_ssize_t step = call.tiles.cols * query_tiles(call)
    cdef Py_ssize_t rows = segments[0].lq * call.group
    cdef Py_ssize_t blocks = (rows + step - 1) // step
    cdef Py_ssize_t items = count * call.kv_heads * blocks, start = 0, stop, i
    cdef Py_ssize_t size = (work_bytes(call) + 63) & ~<Py_ssize_t> 63
    cdef double work = <double> rows * call.kv_heads * count * segments[0].lk * call.dim
    cdef Py_ssize_t slab
    cdef char *memory
    threads = 1 if work < SMALL_WORK else team_size(threads, items)
    slab = max(<Py_ssize_t> threads, <Py_ssize_t> (items * (SLAB_WORK / max(work, 1.0))))
    memory = <char *> malloc(threads * size)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the attention engine's scratch")
    try:
        while start < items:
            stop = min(items, start + slab)
            for i in prange(start, stop, schedule="dynamic", num_threads=threads,
                            use_threads_if=threads > 1):
                visit_block(call, segments + i // (call.kv_heads * blocks),
                            rankings + i // (call.kv_heads * blocks) if rankings != NULL
                            else NULL,
                            <int> (i // blocks % call.kv_heads), i % blocks * step,
                            memory + thread_index() * size, visit)
            start = stop
            with gil:
                PyErr_CheckSignals()
    finally:
        free(memory)
    return 0


cdef int run_weights(const Call *call, const Segment *segments, Py_ssize_t count,
                     int threads) except -1 nogil:
    """Write the probabilities of every segment; segment.out takes them."""
    return visit_all(call, segments, NULL, count, threads, weigh_tile)


cdef int run_top_k(const Call *call, const Segment *segments, const Ranking *rankings,
                   Py_ssize_t count, int threads) except -1 nogil:
    """Write the k best keys of every row and their weights."""
    return visit_all(call, segments, rankings, count, threads, rank_tile)
