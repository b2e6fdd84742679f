"""The first pass of the gradient: queries across the lanes, dQ of a block of them.

The same walk gives the sums behind the gradient of the ALiBi slopes, and in a pass of its own
dS itself, which is the gradient of a bias.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from ruvector._kernels cimport _ball, _prefill
from ruvector._kernels._dispatch cimport rv_softmax_tiles
from ruvector._kernels._gradients cimport (
    Gradients, GradientSegment, Work, ball_finite, ball_row, clear_ball, lane_row, lay_out,
    rows_as_reals,
)
from ruvector._kernels._prefill cimport Tile
from ruvector._kernels._problem cimport Call, Segment, query_position, real_at, set_real


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
