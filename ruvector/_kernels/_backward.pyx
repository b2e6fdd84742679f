"""The gradient of the streaming softmax: two passes over the forward tiles.

The first pass owns blocks of query rows and gives dQ (and the sums behind the gradient of the
ALiBi slopes), the second owns blocks of keys, which lie across the lanes, and gives dK and dV;
a third, only where the gradient of a bias is wanted, adds dS into it. P is recomputed from L.
No two threads write the same row and every sum has one order, so results do not depend on the
number of threads. Seven products instead of the least five buy that; memory is O(rows): D and
L, and the scratch of each thread. The mathematics is in simd/backward.inc.h.

With a ball both passes also take dS through the distances (_ball.pyx), where queries and keys
change places; what they then give for each point is mapped to its row outside of them.
"""

from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels cimport _ball, _prefill
from ruvector._kernels._ball cimport BallTile
from ruvector._kernels._dispatch cimport rv_softmax_tiles
from ruvector._kernels._openmp cimport team_size, thread_index
from ruvector._kernels._prefill cimport Scratch, Tile
from ruvector._kernels._problem cimport (
    Bounds, Call, Segment, any_visible, query_bounds, query_position, real_at, set_real,
)

cdef double LOG2E = 1.4426950408889634
# As in the engine: what is too small for threads, and what runs between two signal checks.
cdef double SMALL_WORK = 1e6
cdef double SLAB_WORK = 1e10


cdef struct Work:
    # One thread's buffers: the forward scratch, then [dim + 1][cols] and [dim_v + 1][cols]
    # packed rows, sums of the same shapes, tiles [key_tile][cols], lanes [4][cols], the rows
    # of queries or values as reals, and row pointers.
    Scratch scratch
    char *packed
    char *packed_v
    char *sums
    char *sums_v
    char *dp
    char *capped
    char *raw
    char *lanes
    char *rows
    char *rows_v
    const void **pointers
    void **targets
    # With a ball: keys across the lanes, sums [ball dim][cols] and lanes [3][cols].
    BallTile ball_keys
    char *ball_sums
    char *ball_lanes


cdef inline Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return (size + 63) & ~<Py_ssize_t> 63


cdef Py_ssize_t work_bytes(const Call *call) noexcept nogil:
    cdef const rv_softmax_tiles *t = call.tiles
    cdef Py_ssize_t lane_row = aligned(t.cols * t.real)
    cdef Py_ssize_t width = call.dim + call.dim_v
    cdef Py_ssize_t total = aligned(_prefill.scratch_bytes(call)) + 64
    total += 2 * ((width + 2) * lane_row) + (3 * t.key_tile + 8) * lane_row
    total += aligned(t.key_tile * call.dim * t.real) + aligned(t.key_tile * call.dim_v * t.real)
    if call.ball != NULL:
        total += _ball.tile_bytes(call) + (call.ball.dim + 3) * lane_row
    return total + 2 * aligned(t.cols * sizeof(void *))


cdef void lay_out(const Call *call, char *memory, Work *work) noexcept nogil:
    cdef const rv_softmax_tiles *t = call.tiles
    cdef Py_ssize_t lane_row = aligned(t.cols * t.real)
    cdef char *at = <char *> aligned(<Py_ssize_t> memory)
    _prefill.lay_out(call, at, &work.scratch)
    at += aligned(_prefill.scratch_bytes(call))
    work.packed = at
    at += (call.dim + 1) * lane_row
    work.packed_v = at
    at += (call.dim_v + 1) * lane_row
    work.sums = at
    at += (call.dim + 1) * lane_row
    work.sums_v = at
    at += (call.dim_v + 1) * lane_row
    work.dp = at
    at += t.key_tile * lane_row
    work.capped = at
    at += t.key_tile * lane_row
    work.raw = at
    at += t.key_tile * lane_row
    work.lanes = at
    at += 8 * lane_row
    work.rows = at
    at += aligned(t.key_tile * call.dim * t.real)
    work.rows_v = at
    at += aligned(t.key_tile * call.dim_v * t.real)
    work.pointers = <const void **> at
    at += aligned(t.cols * sizeof(void *))
    work.targets = <void **> at
    if call.ball != NULL:
        at = _ball.lay_out_tile(call, at + aligned(t.cols * sizeof(void *)), &work.ball_keys)
        work.ball_lanes = at
        work.ball_sums = at + 3 * lane_row


cdef inline char *lane_row(const Call *call, const Work *work, int index) noexcept nogil:
    return work.lanes + index * aligned(call.tiles.cols * call.tiles.real)


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


cdef inline const char *rows_as_reals(const Call *call, const char *rows, Py_ssize_t stride,
                                      Py_ssize_t dim, int count, bint values, char *buffer,
                                      Py_ssize_t *ld) noexcept nogil:
    """The rows themselves where they are reals, else a widened copy."""
    cdef const rv_softmax_tiles *t = call.tiles
    if t.load_keys == NULL:
        ld[0] = stride // t.item
        return rows
    if values:
        t.load_values(rows, stride // t.item, count, dim, buffer)
    else:
        t.load_keys(rows, stride // t.item, count, dim, buffer)
    ld[0] = dim
    return buffer


# ---- first pass: queries across the lanes ---------------------------------------------


cdef void query_tile(const Call *call, const Segment *segment, const Gradients *g,
                     const GradientSegment *want, int kv_head, Py_ssize_t start, int index,
                     Work *work, bint into_bias) noexcept nogil:
    """dQ of one tile of query rows, or dS added into the gradient of the bias."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef Tile *tile = work.scratch.tiles + index
    cdef char *lse2 = lane_row(call, work, 0)
    cdef char *delta = lane_row(call, work, 1)
    cdef char *position = lane_row(call, work, 2)
    cdef char *slope = lane_row(call, work, 3)
    cdef char *ones = lane_row(call, work, 4)
    cdef Py_ssize_t row, i, ldk, ldv
    cdef int64_t first_key = 0, last
    cdef int lane, head, nk
    cdef const char *keys
    cdef const char *values
    cdef bint careful
    for lane in range(tile.cols):
        row = start + min(lane, tile.rows - 1)
        head = kv_head * call.group + <int> (row % call.group)
        i = row // call.group
        work.pointers[lane] = want.out + head * g.out_head + i * g.out_row
        set_real(call, lse2, lane, real_at(call, want.lse2, head * segment.lq + i))
        set_real(call, delta, lane, real_at(call, want.delta, head * segment.lq + i))
        set_real(call, slope, lane, 0.0)
        set_real(call, ones, lane, 1.0)
    t.pack(work.pointers, tile.cols, call.dim_v, 1.0, work.packed_v)
    memset(work.sums, 0, call.dim * tile.cols * t.real)
    clear_ball(call, work)

    if tile.sink == 0:
        first_key = tile.lower
    while first_key < segment.lk:
        nk = <int> min(<int64_t> t.key_tile, segment.lk - first_key)
        last = first_key + nk
        if first_key >= tile.sink and (last <= tile.lower or first_key >= tile.upper):
            first_key = last
            continue
        last = min(last, max(tile.upper, tile.sink))
        nk = <int> (last - first_key)
        keys = rows_as_reals(call, segment.k + kv_head * call.k_head + first_key * call.k_row,
                             call.k_row, call.dim, nk, False, work.rows, &ldk)
        values = rows_as_reals(call, segment.v + kv_head * call.v_head + first_key * call.v_row,
                               call.v_row, call.dim_v, nk, True, work.rows_v, &ldv)
        if call.ball != NULL:
            _ball.load_keys(call, segment, kv_head, first_key, nk, &work.scratch.ball)
        careful = _prefill.score_tile(call, segment, kv_head, start, tile, first_key, nk, keys,
                                      ldk, &work.scratch)
        if careful:
            careful = not t.all_finite(
                segment.k + kv_head * call.k_head + first_key * call.k_row,
                call.k_row // t.item, nk, call.dim) or not ball_finite(
                    call, nk, &work.scratch.ball)
        if careful:
            memcpy(work.raw, work.scratch.s, nk * tile.cols * t.real)
        g.tiles.exp(work.scratch.s, nk, tile.cols, lse2, 0)
        t.scores(work.packed_v, tile.cols, values, ldv, nk, call.dim_v, work.dp)
        g.tiles.scores(work.scratch.s, work.dp, nk, tile.cols, delta, 0)
        if into_bias:
            add_to_bias(call, segment, g, want, kv_head, start, tile, first_key, nk, work)
            first_key = last
            continue
        if want.slopes != NULL:
            for lane in range(tile.cols):
                row = start + min(lane, tile.rows - 1)
                set_real(call, position, lane,
                         query_position(call, segment, row // call.group) - first_key)
            g.tiles.alibi(work.dp, nk, tile.cols, position, slope)
        if call.softcap != 0:
            t.scores(tile.qt, tile.cols, keys, ldk, nk, call.dim, work.capped)
            t.softcap(work.capped, nk, tile.cols, call.softcap * call.unit)
            g.tiles.softcap(work.dp, work.capped, nk, tile.cols, call.softcap * call.unit)
        if careful:
            t.accumulate_visible(work.dp, work.raw, tile.cols, keys, ldk, nk, call.dim,
                                 work.sums)
        else:
            t.accumulate(work.dp, tile.cols, keys, ldk, nk, call.dim, work.sums)
        if call.ball != NULL:
            _ball.differentiate_scores(
                call, &tile.ball, nk, tile.cols, &work.scratch.ball, work.dp,
                work.raw if careful else NULL, work.ball_sums, ball_row(call, work, 0),
                ball_row(call, work, 1),
                ball_row(call, work, 2) if want.ball.distances != NULL else NULL)
        first_key = last
    if into_bias:
        return

    for lane in range(tile.rows):
        row = start + lane
        head = kv_head * call.group + <int> (row % call.group)
        i = row // call.group
        if want.slopes != NULL:
            set_real(call, want.slopes, head * segment.lq + i, real_at(call, slope, lane))
        work.targets[lane] = want.q + head * g.q_head + i * g.q_row
    if want.q != NULL:
        t.multiply(work.sums, <int> call.dim, tile.cols, call.scale)
        t.finish(work.sums, NULL, ones, tile.cols, tile.rows, call.dim, work.targets, NULL)
    if call.ball != NULL:
        for lane in range(tile.rows):
            row = start + lane
            i = (kv_head * call.group + row % call.group) * segment.lq + row // call.group
            set_real(call, want.ball.q_mass, i, real_at(call, ball_row(call, work, 0), lane))
            set_real(call, want.ball.q_pairs, i, real_at(call, ball_row(call, work, 1), lane))
            if want.ball.distances != NULL:
                set_real(call, want.ball.distances, i,
                         real_at(call, ball_row(call, work, 2), lane))
            work.targets[lane] = want.ball.q + i * call.ball.dim * t.real
        t.finish(work.ball_sums, NULL, ones, tile.cols, tile.rows, call.ball.dim, work.targets,
                 NULL)


cdef inline char *ball_row(const Call *call, const Work *work, int index) noexcept nogil:
    return work.ball_lanes + index * aligned(call.tiles.cols * call.tiles.real)


cdef inline void clear_ball(const Call *call, Work *work) noexcept nogil:
    if call.ball != NULL:
        memset(work.ball_lanes, 0,
               (call.ball.dim + 3) * aligned(call.tiles.cols * call.tiles.real))


cdef inline bint ball_finite(const Call *call, int n,
                             const _ball.BallScratch *scratch) noexcept nogil:
    """Are the rows that take the place of keys all finite?"""
    return call.ball == NULL or call.ball.reals.all_finite(
        scratch.keys, scratch.ldk, n, call.ball.dim)


cdef void add_to_bias(const Call *call, const Segment *segment, const Gradients *g,
                      const GradientSegment *want, int kv_head, Py_ssize_t start,
                      const Tile *tile, int64_t first_key, int nk,
                      const Work *work) noexcept nogil:
    """Add dS[nk][lanes] to the gradient of the bias, through its strides."""
    cdef Py_ssize_t row
    cdef char *at
    cdef int lane, j, head
    for lane in range(tile.rows):
        row = start + lane
        head = kv_head * call.group + <int> (row % call.group)
        at = (want.bias + head * g.bias_head + (row // call.group) * g.bias_row
              + first_key * g.bias_key)
        for j in range(nk):
            set_real(call, at + j * g.bias_key, 0,
                     real_at(call, at + j * g.bias_key, 0)
                     + real_at(call, work.dp, j * tile.cols + lane))


cdef void query_block(const Call *call, const Segment *segment, const Gradients *g,
                      const GradientSegment *want, int kv_head, Py_ssize_t start, char *memory,
                      bint into_bias) noexcept nogil:
    cdef Work work
    cdef int i, count
    lay_out(call, memory, &work)
    count = _prefill.load_queries(call, segment, kv_head, start, &work.scratch)
    for i in range(count):
        query_tile(call, segment, g, want, kv_head, start + i * call.tiles.cols, i, &work,
                   into_bias)


# ---- second pass: keys across the lanes -----------------------------------------------


cdef bint hide_row(const Call *call, const Segment *segment, Py_ssize_t i, int64_t first_key,
                   int cols, char *s, const Work *work) noexcept nogil:
    """Hide what query i does not see of the keys in the lanes; returns whether it hid any."""
    cdef Bounds seen = query_bounds(call, segment, i)
    cdef char *lower = lane_row(call, work, 2)
    cdef char *upper = lane_row(call, work, 3)
    cdef char *sink = lane_row(call, work, 4)
    cdef int64_t last = first_key + cols
    cdef int lane
    if (seen.lower <= first_key and last <= seen.upper) or last <= seen.sink:
        return False
    for lane in range(cols):
        set_real(call, lower, lane, max(-1, min(1, seen.lower - first_key - lane)))
        set_real(call, upper, lane, max(-1, min(1, seen.upper - first_key - lane)))
        set_real(call, sink, lane, max(-1, min(1, seen.sink - first_key - lane)))
    call.tiles.hide_outside(s, 1, cols, lower, upper, sink)
    return True


cdef bint score_queries(const Call *call, const Segment *segment, int head, int64_t first_key,
                        int lanes, int cols, Py_ssize_t first_query, int nq,
                        const char *queries, Py_ssize_t ldq, char *s,
                        Work *work) noexcept nogil:
    """Scores of nq queries against the keys in the lanes, as _prefill.score_tile turned."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef char *slope = lane_row(call, work, 2)
    cdef char *position = lane_row(call, work, 3)
    cdef bint hidden = segment.bias != NULL or segment.mask != NULL
    cdef Py_ssize_t i, key
    cdef int lane, j
    t.scores(work.packed, cols, queries, ldq, nq, call.dim, s)
    if call.ball != NULL:
        _ball.load_rows(call, segment.ball_q + head * call.ball.q_head
                        + first_query * call.ball.q_row, call.ball.q_row, nq,
                        &work.scratch.ball)
        _ball.add_scores(call, &work.ball_keys, nq, cols, &work.scratch.ball, s)
    if call.softcap != 0:
        t.softcap(s, nq, cols, call.softcap * call.unit)
        memcpy(work.capped, s, nq * cols * t.real)
    if call.slopes != NULL:
        for lane in range(cols):
            set_real(call, slope, lane, real_at(call, call.slopes, head) * call.unit)
        for j in range(nq):
            for lane in range(cols):
                set_real(call, position, lane, first_key + lane - query_position(
                    call, segment, first_query + j))
            t.alibi(s + j * cols * t.real, 1, cols, slope, position)
    if segment.bias != NULL:
        for lane in range(cols):
            key = first_key + min(lane, lanes - 1)
            work.pointers[lane] = (segment.bias + head * call.bias_head
                                   + first_query * call.bias_row + key * call.bias_key)
        t.add_bias(s, nq, cols, work.pointers, call.bias_row // t.real, call.unit)
    if segment.mask != NULL:
        for lane in range(cols):
            key = first_key + min(lane, lanes - 1)
            work.pointers[lane] = (segment.mask + head * call.mask_head
                                   + first_query * call.mask_row + key * call.mask_key)
        t.hide_mask(s, nq, cols, work.pointers, call.mask_row)
    if call.causal or call.left >= 0 or call.right >= 0:
        for j in range(nq):
            i = first_query + j
            if hide_row(call, segment, i, first_key, cols, s + j * cols * t.real, work):
                hidden = True
    return hidden


cdef Py_ssize_t next_seer(const Call *call, const Segment *segment, Py_ssize_t query,
                          int64_t first_key, int64_t last) noexcept nogil:
    """The first query from `query` on that sees one of the keys [first_key, last)."""
    cdef Bounds seen
    if call.causal or call.left >= 0 or call.right >= 0:
        while query < segment.lq:
            seen = query_bounds(call, segment, query)
            if any_visible(&seen, first_key, last):
                break
            query += 1
    return query


cdef void key_block(const Call *call, const Segment *segment, const Gradients *g,
                    const GradientSegment *want, int kv_head, int64_t first_key,
                    char *memory) noexcept nogil:
    """dK and dV of the keys in one block of lanes."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef int lanes = <int> min(<int64_t> t.cols, segment.lk - first_key)
    cdef int cols = t.lanes if lanes <= t.lanes else t.cols
    cdef int lane, head, nq
    cdef Py_ssize_t first_query, key, ldq, ldo
    cdef const char *stored
    cdef const char *stored_out
    cdef const char *queries
    cdef const char *outs
    cdef char *s
    cdef char *ones
    cdef char *rows_lse
    cdef char *rows_delta
    cdef bint careful
    cdef Work work
    lay_out(call, memory, &work)
    s = work.scratch.s
    for lane in range(cols):
        key = first_key + min(lane, lanes - 1)
        work.pointers[lane] = segment.k + kv_head * call.k_head + key * call.k_row
    t.pack(work.pointers, cols, call.dim, call.scale * call.unit, work.packed)
    for lane in range(cols):
        key = first_key + min(lane, lanes - 1)
        work.pointers[lane] = segment.v + kv_head * call.v_head + key * call.v_row
    t.pack(work.pointers, cols, call.dim_v, 1.0, work.packed_v)
    memset(work.sums, 0, call.dim * cols * t.real)
    memset(work.sums_v, 0, call.dim_v * cols * t.real)
    clear_ball(call, &work)
    if call.ball != NULL:
        _ball.load_key_lanes(call, segment, kv_head, first_key, lanes, cols, &work.ball_keys,
                             &work.scratch.ball)

    for head in range(kv_head * call.group, (kv_head + 1) * call.group):
        first_query = next_seer(call, segment, 0, first_key, first_key + lanes)
        while first_query < segment.lq:
            nq = <int> min(<Py_ssize_t> t.key_tile, segment.lq - first_query)
            stored = segment.q + head * call.q_head + first_query * call.q_row
            stored_out = want.out + head * g.out_head + first_query * g.out_row
            queries = rows_as_reals(call, stored, call.q_row, call.dim, nq, False, work.rows,
                                    &ldq)
            outs = rows_as_reals(call, stored_out, g.out_row, call.dim_v, nq, True,
                                 work.rows_v, &ldo)
            rows_lse = want.lse2 + (head * segment.lq + first_query) * t.real
            rows_delta = want.delta + (head * segment.lq + first_query) * t.real
            careful = score_queries(call, segment, head, first_key, lanes, cols, first_query,
                                    nq, queries, ldq, s, &work)
            if careful:
                careful = not (
                    t.all_finite(stored, call.q_row // t.item, nq, call.dim)
                    and t.all_finite(stored_out, g.out_row // t.item, nq, call.dim_v)
                    and ball_finite(call, nq, &work.scratch.ball))
            if careful:
                memcpy(work.raw, s, nq * cols * t.real)
            g.tiles.exp(s, nq, cols, rows_lse, 1)
            t.scores(work.packed_v, cols, outs, ldo, nq, call.dim_v, work.dp)
            g.tiles.scores(s, work.dp, nq, cols, rows_delta, 1)
            if call.softcap != 0:
                g.tiles.softcap(work.dp, work.capped, nq, cols, call.softcap * call.unit)
            if careful:
                t.accumulate_visible(s, work.raw, cols, outs, ldo, nq, call.dim_v, work.sums_v)
                t.accumulate_visible(work.dp, work.raw, cols, queries, ldq, nq, call.dim,
                                     work.sums)
            else:
                t.accumulate(s, cols, outs, ldo, nq, call.dim_v, work.sums_v)
                t.accumulate(work.dp, cols, queries, ldq, nq, call.dim, work.sums)
            if call.ball != NULL:
                _ball.differentiate_scores(
                    call, &work.ball_keys, nq, cols, &work.scratch.ball, work.dp,
                    work.raw if careful else NULL, work.ball_sums, ball_row(call, &work, 0),
                    ball_row(call, &work, 1), NULL)
            first_query = next_seer(call, segment, first_query + nq, first_key,
                                    first_key + lanes)

    ones = lane_row(call, &work, 0)
    for lane in range(cols):
        set_real(call, ones, lane, 1.0)
    if want.k != NULL:
        for lane in range(lanes):
            work.targets[lane] = want.k + kv_head * g.k_head + (first_key + lane) * g.k_row
        t.multiply(work.sums, <int> call.dim, cols, call.scale)
        t.finish(work.sums, NULL, ones, cols, lanes, call.dim, work.targets, NULL)
    if want.v != NULL:
        for lane in range(lanes):
            work.targets[lane] = want.v + kv_head * g.v_head + (first_key + lane) * g.v_row
        t.finish(work.sums_v, NULL, ones, cols, lanes, call.dim_v, work.targets, NULL)
    if call.ball != NULL:
        for lane in range(lanes):
            key = kv_head * segment.lk + first_key + lane
            set_real(call, want.ball.k_mass, key, real_at(call, ball_row(call, &work, 0), lane))
            set_real(call, want.ball.k_pairs, key,
                     real_at(call, ball_row(call, &work, 1), lane))
            work.targets[lane] = want.ball.k + key * call.ball.dim * t.real
        t.finish(work.ball_sums, NULL, ones, cols, lanes, call.ball.dim, work.targets, NULL)


# ---- all of it ------------------------------------------------------------------------


cdef struct Item:
    Py_ssize_t segment, start
    int head


cdef Py_ssize_t list_items(const Call *call, const Segment *segments, Py_ssize_t count,
                           bint keys, Py_ssize_t step, Item *items) noexcept nogil:
    """List the blocks of query rows or of keys; counts them where `items` is null."""
    cdef Py_ssize_t n = 0, s, start, rows
    cdef int head
    for s in range(count):
        rows = segments[s].lk if keys else segments[s].lq * call.group
        for head in range(call.kv_heads):
            start = 0
            while start < rows:
                if items != NULL:
                    items[n] = Item(s, start, head)
                n += 1
                start += step
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
