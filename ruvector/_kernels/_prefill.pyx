"""Prefill: one block of query rows against all the keys that any of them sees.

The rows of one key/value head are its queries times the heads that share it (grouped-query
attention), row r = query r // group of head r % group, so that neighbouring lanes stand at
neighbouring positions and read the same keys. A block of up to `query_tiles` tiles walks the
key tiles once; a key tile that no row sees is skipped, one that every row sees runs without a
mask. Memory beyond the tiles' scratch: none. The mathematics is in simd/softmax.inc.h.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from ruvector._kernels cimport _ball
from ruvector._kernels._dispatch cimport rv_softmax_tiles
from ruvector._kernels._problem cimport (
    Bounds, Call, Segment, query_bounds, query_position, query_tiles, real_at, set_real,
    start_state, sum_rows,
)
from ruvector._kernels._rotary cimport turn_keys, turn_query

cdef inline Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return (size + 63) & ~<Py_ssize_t> 63


cdef Py_ssize_t scratch_bytes(const Call *call) noexcept nogil:
    """Bytes of one thread's scratch, 64 more than used so that it can be aligned."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef Py_ssize_t lane_row = aligned(t.cols * t.real)
    cdef Py_ssize_t one_tile = (
        sizeof(Tile) + 3 * aligned(t.cols * sizeof(int64_t))
        + aligned((call.dim + 1) * t.cols * t.real) + aligned(sum_rows(call) * t.cols * t.real)
        + 2 * lane_row
    )
    cdef Py_ssize_t total = 64 + aligned(query_tiles(call) * sizeof(Tile))
    if call.ball != NULL:
        one_tile += _ball.tile_bytes(call)
        total += _ball.scratch_bytes(call)
    total += query_tiles(call) * one_tile + 3 * lane_row
    total += 2 * aligned(t.key_tile * t.cols * t.real)
    total += 3 * aligned(t.cols * sizeof(void *))
    if call.rotary != NULL:
        total += t.cols * aligned(call.dim * t.real)
    if t.load_keys != NULL or call.rotary != NULL:
        total += aligned(t.key_tile * call.dim * t.real)
    if t.load_values != NULL:
        total += aligned(t.key_tile * call.dim_v * t.real)
    return total


cdef void lay_out(const Call *call, char *memory, Scratch *scratch) noexcept nogil:
    """Place the buffers of one thread in `memory`."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef char *at = <char *> aligned(<Py_ssize_t> memory)
    cdef Tile *tile
    cdef int i
    scratch.tiles = <Tile *> at
    at += aligned(query_tiles(call) * sizeof(Tile))
    for i in range(query_tiles(call)):
        tile = scratch.tiles + i
        tile.row_lower = <int64_t *> at
        at += aligned(t.cols * sizeof(int64_t))
        tile.row_upper = <int64_t *> at
        at += aligned(t.cols * sizeof(int64_t))
        tile.row_sink = <int64_t *> at
        at += aligned(t.cols * sizeof(int64_t))
        tile.qt = at
        at += aligned((call.dim + 1) * t.cols * t.real)
        tile.o = at
        at += aligned(sum_rows(call) * t.cols * t.real)
        tile.m = at
        at += aligned(t.cols * t.real)
        tile.l = at
        at += aligned(t.cols * t.real)
        if call.ball != NULL:
            at = _ball.lay_out_tile(call, at, &tile.ball)
    scratch.lanes = at
    at += 3 * aligned(t.cols * t.real)
    scratch.s = at
    at += aligned(t.key_tile * t.cols * t.real)
    scratch.raw = at
    at += aligned(t.key_tile * t.cols * t.real)
    scratch.rows = <const void **> at
    at += aligned(t.cols * sizeof(void *))
    scratch.outs = <void **> at
    at += aligned(t.cols * sizeof(void *))
    scratch.lses = <void **> at
    at += aligned(t.cols * sizeof(void *))
    scratch.queries = at
    if call.rotary != NULL:
        at += t.cols * aligned(call.dim * t.real)
    scratch.keys = at
    if t.load_keys != NULL or call.rotary != NULL:
        at += aligned(t.key_tile * call.dim * t.real)
    scratch.values = at
    if t.load_values != NULL:
        at += aligned(t.key_tile * call.dim_v * t.real)
    if call.ball != NULL:
        _ball.lay_out(call, at, &scratch.ball)


cdef int load_queries(const Call *call, const Segment *segment, int kv_head, Py_ssize_t start,
                      Scratch *scratch) noexcept nogil:
    """Pack the rows of a block from row `start` on; returns the number of tiles."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef Py_ssize_t total = segment.lq * call.group, row = start, i
    cdef Tile *tile
    cdef Bounds seen
    cdef const rv_softmax_tiles *packing = t if call.rotary == NULL else call.rotary.reals
    cdef int count = 0, lane, head
    while count < query_tiles(call) and row < total:
        tile = scratch.tiles + count
        tile.rows = <int> min(<Py_ssize_t> t.cols, total - row)
        tile.cols = t.lanes if tile.rows <= t.lanes else t.cols
        for lane in range(tile.cols):
            i = (row + min(lane, tile.rows - 1)) // call.group
            head = kv_head * call.group + <int> ((row + min(lane, tile.rows - 1)) % call.group)
            if call.rotary != NULL:
                scratch.rows[lane] = scratch.queries + lane * aligned(call.dim * t.real)
                turn_query(call, segment, head, i, <char *> scratch.rows[lane])
            else:
                scratch.rows[lane] = segment.q + head * call.q_head + i * call.q_row
            start_state(call, head, tile.m, tile.l, lane)
            seen = query_bounds(call, segment, i)
            tile.row_lower[lane] = seen.lower
            tile.row_upper[lane] = seen.upper
            tile.row_sink[lane] = seen.sink
            if lane == 0:
                tile.lower = tile.inner_lower = seen.lower
                tile.upper = tile.inner_upper = seen.upper
                tile.sink = tile.inner_sink = seen.sink
            else:
                tile.lower = min(tile.lower, seen.lower)
                tile.upper = max(tile.upper, seen.upper)
                tile.sink = max(tile.sink, seen.sink)
                tile.inner_lower = max(tile.inner_lower, seen.lower)
                tile.inner_upper = min(tile.inner_upper, seen.upper)
                tile.inner_sink = min(tile.inner_sink, seen.sink)
        packing.pack(scratch.rows, tile.cols, call.dim, call.scale * call.unit, tile.qt)
        memset(tile.o, 0, sum_rows(call) * tile.cols * t.real)
        if call.ball != NULL:
            _ball.load_queries(call, segment, kv_head, row, tile.rows, tile.cols, &tile.ball,
                               &scratch.ball)
        row += tile.rows
        count += 1
    return count


cdef void load_keys(const Call *call, const Segment *segment, int kv_head, int64_t first_key,
                    int nk, char *out) noexcept nogil:
    """Write a tile of keys as the tiles read it, where they do not read it in place."""
    if call.rotary != NULL:
        turn_keys(call, segment, kv_head, first_key, nk, out)
    else:
        call.tiles.load_keys(segment.k + kv_head * call.k_head + first_key * call.k_row,
                             call.k_row // call.tiles.item, nk, call.dim, out)
        if segment.k_scales != NULL:
            call.tiles.scale_rows(out, nk, call.dim, scales_at(
                segment.k_scales, call.k_scale_head, kv_head, first_key))


cdef inline const float *scales_at(const char *scales, Py_ssize_t stride, int kv_head,
                                   int64_t first_key) noexcept nogil:
    return <const float *> (scales + kv_head * stride) + first_key


cdef bint score_tile(const Call *call, const Segment *segment, int kv_head, Py_ssize_t start,
                     const Tile *tile, int64_t first_key, int nk, const char *keys,
                     Py_ssize_t ldk, const Scratch *scratch) noexcept nogil:
    """Scores of nk keys from `first_key` on, in scratch.s; returns whether any was hidden.

    `start` is the tile's first row; `keys` and `ldk` are what the tile function reads.
    """
    cdef const rv_softmax_tiles *t = call.tiles
    cdef Py_ssize_t row, i
    cdef int lane, head, cols = tile.cols
    cdef char *first = scratch.lanes
    cdef char *second = first + aligned(t.cols * t.real)
    cdef char *third = second + aligned(t.cols * t.real)
    cdef bint inside = first_key >= tile.inner_lower and first_key + nk <= tile.inner_upper
    cdef bint hidden = not inside and first_key + nk > tile.inner_sink

    t.scores(tile.qt, cols, keys, ldk, nk, call.dim, scratch.s)
    if call.ball != NULL:
        _ball.add_scores(call, &tile.ball, nk, cols, &scratch.ball, scratch.s)
    if call.softcap != 0:
        t.softcap(scratch.s, nk, cols, call.softcap * call.unit)
    if call.slopes != NULL:
        for lane in range(cols):
            row = start + min(lane, tile.rows - 1)
            head = kv_head * call.group + <int> (row % call.group)
            set_real(call, first, lane, real_at(call, call.slopes, head) * call.unit)
            set_real(call, second, lane,
                     query_position(call, segment, row // call.group) - first_key)
        t.alibi(scratch.s, nk, cols, first, second)
    if segment.bias != NULL:
        for lane in range(cols):
            row = start + min(lane, tile.rows - 1)
            i = row // call.group
            head = kv_head * call.group + <int> (row % call.group)
            scratch.rows[lane] = (segment.bias + head * call.bias_head + i * call.bias_row
                                  + first_key * call.bias_key)
        t.add_bias(scratch.s, nk, cols, scratch.rows, call.bias_key // t.real, call.unit)
    if segment.mask != NULL:
        for lane in range(cols):
            row = start + min(lane, tile.rows - 1)
            i = row // call.group
            head = kv_head * call.group + <int> (row % call.group)
            scratch.rows[lane] = (segment.mask + head * call.mask_head + i * call.mask_row
                                  + first_key * call.mask_key)
        t.hide_mask(scratch.s, nk, cols, scratch.rows, call.mask_key)
    if hidden:
        for lane in range(cols):
            set_real(call, first, lane, max(0, tile.row_lower[lane] - first_key))
            set_real(call, second, lane, min(<int64_t> nk, tile.row_upper[lane] - first_key))
            set_real(call, third, lane, min(<int64_t> nk, tile.row_sink[lane] - first_key))
        t.hide_outside(scratch.s, nk, cols, first, second, third)
    return hidden or segment.bias != NULL or segment.mask != NULL


cdef void attend_tile(const Call *call, const Segment *segment, int kv_head, Py_ssize_t start,
                      const Tile *tile, int64_t first_key, int nk, const char *keys,
                      Py_ssize_t ldk, const char *values, Py_ssize_t ldv,
                      const Scratch *scratch) noexcept nogil:
    """Bring the state of one tile of rows up to date with nk keys."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef const char *stored = segment.v + kv_head * call.v_head + first_key * call.v_row
    cdef bint careful = False
    if score_tile(call, segment, kv_head, start, tile, first_key, nk, keys, ldk, scratch):
        careful = not t.all_finite(stored, call.v_row // t.item, nk, call.dim_v)
        if call.ball != NULL and not careful:
            careful = not t.all_finite(
                segment.ball_v + kv_head * call.ball.v_head + first_key * call.ball.v_row,
                call.ball.v_row // t.item, nk, call.ball.dim_v)
    if careful:
        memcpy(scratch.raw, scratch.s, nk * tile.cols * t.real)
    t.update(scratch.s, nk, tile.cols, tile.m, tile.l, tile.o, sum_rows(call))
    if careful:
        t.accumulate_visible(scratch.s, scratch.raw, tile.cols, values, ldv, nk, call.dim_v,
                             tile.o)
    else:
        t.accumulate(scratch.s, tile.cols, values, ldv, nk, call.dim_v, tile.o)
    if call.ball != NULL:
        _ball.accumulate(call, nk, tile.cols, scratch.s, scratch.raw if careful else NULL,
                         &scratch.ball, tile.o + call.dim_v * tile.cols * t.real)


cdef void attend_range(const Call *call, const Segment *segment, int kv_head, Py_ssize_t start,
                       int tiles, int64_t begin, int64_t end,
                       Scratch *scratch) noexcept nogil:
    """Walk the keys [begin, end) in tiles of keys."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef int64_t first_key = begin, last
    cdef const char *keys
    cdef const char *values
    cdef Py_ssize_t ldk = call.k_row // t.item, ldv = call.v_row // t.item
    cdef const Tile *tile
    cdef int nk, i
    while first_key < end:
        nk = <int> min(<int64_t> t.key_tile, end - first_key)
        keys = segment.k + kv_head * call.k_head + first_key * call.k_row
        values = segment.v + kv_head * call.v_head + first_key * call.v_row
        if t.load_keys != NULL or call.rotary != NULL:
            load_keys(call, segment, kv_head, first_key, nk, scratch.keys)
            keys = scratch.keys
            ldk = call.dim
        if t.load_values != NULL:
            t.load_values(values, call.v_row // t.item, nk, call.dim_v, scratch.values)
            values = scratch.values
            if segment.v_scales != NULL:
                t.scale_rows(scratch.values, nk, call.dim_v, scales_at(
                    segment.v_scales, call.v_scale_head, kv_head, first_key))
            ldv = call.dim_v
        if call.ball != NULL:
            _ball.load_keys(call, segment, kv_head, first_key, nk, &scratch.ball)
            _ball.load_values(call, segment, kv_head, first_key, nk, &scratch.ball)
        for i in range(tiles):
            tile = scratch.tiles + i
            last = first_key + nk
            if first_key >= tile.sink:
                if last <= tile.lower or first_key >= tile.upper:
                    continue
                last = min(last, tile.upper)
            else:
                last = min(last, max(tile.upper, tile.sink))
            attend_tile(call, segment, kv_head, start + i * t.cols, tile, first_key,
                        <int> (last - first_key), keys, ldk, values, ldv, scratch)
        first_key += nk


cdef void attend_block(const Call *call, const Segment *segment, int kv_head,
                       Py_ssize_t start, Scratch *scratch) noexcept nogil:
    """Output and L of the query rows from `start` on, one block of tiles."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef int tiles = load_queries(call, segment, kv_head, start, scratch)
    cdef int64_t lower = scratch.tiles[0].lower, upper = 0, sink = 0
    cdef Py_ssize_t row
    cdef Tile *tile
    cdef int i, lane, head
    for i in range(tiles):
        lower = min(lower, scratch.tiles[i].lower)
        upper = max(upper, scratch.tiles[i].upper)
        sink = max(sink, scratch.tiles[i].sink)
    if 0 < sink < lower:
        attend_range(call, segment, kv_head, start, tiles, 0, sink, scratch)
    elif sink > 0:
        lower = 0
        upper = max(upper, sink)
    attend_range(call, segment, kv_head, start, tiles, lower, upper, scratch)

    for i in range(tiles):
        tile = scratch.tiles + i
        for lane in range(tile.rows):
            row = start + i * t.cols + lane
            head = kv_head * call.group + <int> (row % call.group)
            row = row // call.group
            scratch.outs[lane] = segment.out + head * call.out_head + row * call.out_row
            if segment.lse != NULL:
                scratch.lses[lane] = segment.lse + head * call.lse_head + row * call.lse_row
        t.finish(tile.o, tile.m, tile.l, tile.cols, tile.rows, call.dim_v, scratch.outs,
                 scratch.lses if segment.lse != NULL else NULL)
        if call.ball != NULL:
            for lane in range(tile.rows):
                row = start + i * t.cols + lane
                head = kv_head * call.group + <int> (row % call.group)
                scratch.outs[lane] = (segment.ball_out + head * call.ball.out_head
                                      + (row // call.group) * call.ball.out_row)
            call.ball.reals.finish(tile.o + call.dim_v * tile.cols * t.real, tile.m, tile.l,
                                   tile.cols, tile.rows, call.ball.dim_v + 1, scratch.outs,
                                   NULL)
