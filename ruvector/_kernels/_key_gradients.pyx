"""The second pass of the gradient: keys across the lanes, dK and dV of a block of them."""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from ruvector._kernels cimport _ball
from ruvector._kernels._dispatch cimport rv_softmax_tiles
from ruvector._kernels._gradients cimport (
    Gradients, GradientSegment, Work, ball_finite, ball_row, clear_ball, lane_row, lay_out,
    rows_as_reals,
)
from ruvector._kernels._problem cimport (
    Bounds, Call, Segment, any_visible, query_bounds, query_position, real_at, set_real,
)


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
