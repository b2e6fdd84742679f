"""Decoding: all rows of one query sequence against one chunk of keys, then the merge.

Key and value heads that lie side by side in memory are handled together, so that every row
of K and V is read once and in order (one pass for each head over interleaved rows reaches a
third of the memory's speed). Keys are cut into chunks whose size depends on the shapes alone;
each chunk leaves a state (m, l, o), and the states are merged in order: the bits of a result
do not depend on who computed which chunk. Where rows of K and V are whole numbers, their
scales multiply scores and probabilities. The mathematics is in simd/decode.inc.h.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from ruvector._kernels cimport _ball
from ruvector._kernels._dispatch cimport rv_decode_tiles
from ruvector._kernels._problem cimport (
    Bounds, Call, Segment, any_visible, query_bounds, query_position, real_at, segment_bounds,
    start_empty, start_state,
)
from ruvector._kernels._rotary cimport score_turned, turn_query

# A chunk reads about this much of K: enough to hide the start of a thread and of a stream.
cdef Py_ssize_t CHUNK_BYTES = 512 * 1024
# Scores of a tile. Each turn from K to V and back waits for the memory, so a tile is as large
# as a chunk where its scores stay in the cache.
cdef Py_ssize_t TILE_BYTES = 64 * 1024
# Keys in a tile are a multiple of this, and of every number of lanes.
cdef Py_ssize_t TILE_STEP = 64


cdef inline Py_ssize_t padded(const Call *call, Py_ssize_t n) noexcept nogil:
    return (n + call.decode.lanes - 1) // call.decode.lanes * call.decode.lanes


cdef inline Py_ssize_t row_width(const Call *call) noexcept nogil:
    # The output row of a query: values, and with a ball its values and lambda - 1.
    cdef Py_ssize_t width = padded(call, call.dim_v)
    if call.ball != NULL:
        width += padded(call, call.ball.dim_v) + call.decode.lanes
    return width


cdef inline Py_ssize_t stepped(Py_ssize_t keys) noexcept nogil:
    return max(TILE_STEP, keys // TILE_STEP * TILE_STEP)


cdef Py_ssize_t chunk_keys(const Call *call, int heads) noexcept nogil:
    """Keys in one chunk, from the shapes alone."""
    cdef Py_ssize_t width = call.dim + call.dim_v
    if call.ball != NULL:
        width += call.ball.dim + call.ball.dim_v
    return stepped(CHUNK_BYTES // max(1, heads * width * call.decode.item // 2))


cdef inline Py_ssize_t tile_keys(const Call *call, Py_ssize_t rows) noexcept nogil:
    """Keys in one tile of scores at the most, from the shapes alone."""
    return min(<Py_ssize_t> call.decode.key_tile,
               stepped(TILE_BYTES // (rows * call.decode.real)))


cdef Py_ssize_t state_bytes(const Call *call, Py_ssize_t rows) noexcept nogil:
    """Bytes of the state (m, l, o) of `rows` rows."""
    return rows * (2 + row_width(call)) * call.decode.real


cdef Py_ssize_t scratch_bytes(const Call *call, Py_ssize_t rows) noexcept nogil:
    """Bytes of scratch for `rows` rows: queries, scores and their copy."""
    cdef const rv_decode_tiles *t = call.decode
    cdef Py_ssize_t size = rows * (padded(call, call.dim) + 2 * tile_keys(call, rows)) * t.real
    if call.rotary != NULL:
        size += padded(call, call.dim) * t.real
    return size if call.ball == NULL else size + _ball.row_scratch_bytes(call, rows)


cdef inline void load_query(const Call *call, const Segment *segment, Py_ssize_t head,
                            Py_ssize_t i, char *turned, char *q) noexcept nogil:
    """Write a query row times the scale; `turned` is room for it before that."""
    cdef double scale = call.scale * call.unit
    if call.rotary == NULL:
        call.decode.load_query(segment.q + head * call.q_head + i * call.q_row, call.dim, scale,
                               q)
    else:
        turn_query(call, segment, head, i, turned)
        call.rotary.decode.load_query(turned, call.dim, scale, q)


cdef inline void multiply_rows(const Call *call, const char *scales, Py_ssize_t stride,
                               int first_head, int rows, int per_head, int64_t first_key,
                               int nk, char *s) noexcept nogil:
    """Multiply each row s[rows][tile_keys] by the scales of its head's stored rows."""
    cdef const rv_decode_tiles *t = call.decode
    cdef Py_ssize_t lds = tile_keys(call, rows) * t.real
    cdef int r
    if scales == NULL:
        return
    scales += first_head * stride + first_key * <Py_ssize_t> sizeof(float)
    for r in range(rows):
        t.multiply(s + r * lds, nk,
                   <const float *> (scales + r // per_head * stride))


cdef inline void score_rows(const Call *call, const Segment *segment, int first_head,
                            int rows, int64_t first_key, int nk, char *s,
                            bint *masked) noexcept nogil:
    """Epilogues of the scores s[rows][tile_keys]; row r is query r // group."""
    cdef const rv_decode_tiles *t = call.decode
    cdef Py_ssize_t lds = tile_keys(call, rows) * t.real, i
    cdef int r, head, group = call.group, lq = <int> segment.lq
    cdef Bounds seen
    masked[0] = segment.bias != NULL or segment.mask != NULL
    for r in range(rows):
        i = (r // group) % lq
        head = (first_head + r // (group * lq)) * group + r % group
        if call.softcap != 0:
            t.softcap(s + r * lds, nk, call.softcap * call.unit)
        if call.slopes != NULL:
            t.alibi(s + r * lds, nk, real_at(call, call.slopes, head) * call.unit,
                    <double> (query_position(call, segment, i) - first_key))
        if segment.bias != NULL:
            t.add_bias(s + r * lds, nk,
                       segment.bias + head * call.bias_head + i * call.bias_row
                       + first_key * call.bias_key, call.bias_key // t.real, call.unit)
        if segment.mask != NULL:
            t.hide_mask(s + r * lds, nk,
                        segment.mask + head * call.mask_head + i * call.mask_row
                        + first_key * call.mask_key, call.mask_key)
        seen = query_bounds(call, segment, i)
        if ((seen.lower > first_key or seen.upper < first_key + nk)
                and seen.sink < first_key + nk):
            masked[0] = True
            t.hide_outside(s + r * lds, nk, <double> (seen.lower - first_key),
                           <double> (seen.upper - first_key),
                           <double> (seen.sink - first_key))


cdef void attend_chunk(const Call *call, const Segment *segment, int first_head, int heads,
                       int64_t begin, int64_t end, char *state, char *memory) noexcept nogil:
    """State of the rows of `heads` key/value heads over the keys [begin, end)."""
    cdef const rv_decode_tiles *t = call.decode
    cdef int group = call.group, lq = <int> segment.lq, per_head = group * lq
    cdef int rows = heads * per_head, r, h, head, nk, real = t.real
    cdef Py_ssize_t ldq = padded(call, call.dim), ldo = row_width(call), i
    cdef Py_ssize_t lds = tile_keys(call, rows), item = t.item
    cdef _ball.BallRows ball
    cdef char *m = state
    cdef char *l = m + rows * real
    cdef char *o = l + rows * real
    cdef char *q = memory
    cdef char *s = q + rows * ldq * real
    cdef char *raw = s + rows * lds * real
    cdef char *turned = raw + rows * lds * real
    cdef const char *v
    cdef bint masked = False, careful
    cdef int64_t first_key = begin
    # A window leaves most of a large tile unseen.
    cdef Py_ssize_t step = lds if call.left < 0 and call.right < 0 else TILE_STEP
    cdef Bounds hull = segment_bounds(call, segment)

    memset(o, 0, rows * ldo * real)
    if call.ball != NULL:
        _ball.lay_out_row_scratch(call, raw + rows * lds * real, rows, &ball)
        _ball.load_query_rows(call, segment, first_head, rows, &ball)
    for r in range(rows):
        i = (r // group) % lq
        head = (first_head + r // per_head) * group + r % group
        load_query(call, segment, head, i, turned, q + r * ldq * real)
        if begin == 0:
            start_state(call, head, m, l, r)
        else:
            start_empty(call, m, l, r)

    while first_key < end:
        nk = <int> min(<int64_t> step, end - first_key)
        if segment.weights == NULL and not any_visible(&hull, first_key, first_key + nk):
            first_key += nk
            continue
        v = segment.v + first_head * call.v_head + first_key * call.v_row
        if call.rotary != NULL:
            score_turned(call, segment, first_head, heads, first_key, nk, q, ldq, s, lds)
        else:
            t.scores(q, ldq, segment.k + first_head * call.k_head + first_key * call.k_row,
                     call.k_row // item, call.k_head // item, nk, heads, per_head, call.dim, s,
                     lds)
        multiply_rows(call, segment.k_scales, call.k_scale_head, first_head, rows, per_head,
                      first_key, nk, s)
        if call.ball != NULL:
            _ball.add_row_scores(call, segment, first_head, rows, first_key, nk, s, lds, &ball)
        score_rows(call, segment, first_head, rows, first_key, nk, s, &masked)
        if segment.weights != NULL:
            for r in range(rows):
                head = first_head * group + r
                memcpy(segment.weights + (head * segment.lk + first_key) * real,
                       s + r * lds * real, nk * real)
        careful = False
        if masked:
            for h in range(heads):
                if not t.all_finite(v + h * call.v_head, call.v_row // item, nk, call.dim_v):
                    careful = True
                if call.ball != NULL and not t.all_finite(
                        segment.ball_v + (first_head + h) * call.ball.v_head
                        + first_key * call.ball.v_row,
                        call.ball.v_row // item, nk, call.ball.dim_v):
                    careful = True
            if careful:
                memcpy(raw, s, rows * lds * real)
        t.update(s, lds, rows, nk, m, l, o, ldo)
        multiply_rows(call, segment.v_scales, call.v_scale_head, first_head, rows, per_head,
                      first_key, nk, s)
        t.accumulate(s, raw if careful else NULL, lds, v, call.v_row // item,
                     call.v_head // item, nk, heads, per_head, call.dim_v, o, ldo)
        if call.ball != NULL:
            _ball.accumulate_rows(call, segment, first_head, rows, first_key, nk, s,
                                  raw if careful else NULL, lds,
                                  o + padded(call, call.dim_v) * real, ldo, &ball)
        first_key += nk


cdef void finish_rows(const Call *call, const Segment *segment, int first_head, int heads,
                      char *states, Py_ssize_t chunks) noexcept nogil:
    """Merge the states of all chunks in order and write output, L and weights."""
    cdef const rv_decode_tiles *t = call.decode
    cdef int group = call.group, lq = <int> segment.lq, per_head = group * lq
    cdef int rows = heads * per_head, r, head, real = t.real
    cdef Py_ssize_t ldo = row_width(call), i, c
    cdef Py_ssize_t size = state_bytes(call, rows)
    cdef char *m
    cdef char *l
    cdef char *o
    cdef char *m2
    cdef void *lse_at
    for r in range(rows):
        i = (r // group) % lq
        head = (first_head + r // per_head) * group + r % group
        m = states + r * real
        l = states + (rows + r) * real
        o = states + (2 * rows + r * ldo) * real
        for c in range(1, chunks):
            m2 = states + c * size
            t.merge(m, l, o, m2 + r * real, m2 + (rows + r) * real,
                    m2 + (2 * rows + r * ldo) * real, ldo)
        lse_at = NULL
        if segment.lse != NULL:
            lse_at = segment.lse + head * call.lse_head + i * call.lse_row
        t.finish(m, l, o, call.dim_v, segment.out + head * call.out_head + i * call.out_row,
                 lse_at)
        if call.ball != NULL:
            _ball.finish_row(call, l, o + padded(call, call.dim_v) * real,
                             segment.ball_out + head * call.ball.out_head
                             + i * call.ball.out_row)
        if segment.weights != NULL:
            t.probabilities(segment.weights + head * segment.lk * real, segment.lk,
                            real_at(call, m, 0), real_at(call, l, 0), 1.0)
