"""The Poincare ball beside the two drivers of the softmax engine.

A call with a ball has a second pair of queries and keys, whose distance joins the score, and
a second part of the values, whose sum is that of lambda x(v), with lambda - 1 summed beside
it in one more row of the output. Rows are mapped into the ball by a factor each, found once a
tile; nothing the size of keys or values is made. The mathematics is in simd/ball.inc.h.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from ruvector._kernels._dispatch cimport rv_ball_rows, rv_softmax_tiles
from ruvector._kernels._problem cimport Ball, Call, Segment, real_at, set_real


cdef inline Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return (size + 63) & ~<Py_ssize_t> 63


cdef char *lay_out_rows(Py_ssize_t size, char *at, rv_ball_rows *rows) noexcept nogil:
    rows.alpha = at
    rows.norm2 = at + size
    rows.a = at + 2 * size
    rows.weight = at + 3 * size
    rows.excess = at + 4 * size
    return at + 5 * size


cdef Py_ssize_t tile_bytes(const Call *call) noexcept nogil:
    """Bytes of one BallTile's buffers, a multiple of 64."""
    cdef const rv_softmax_tiles *t = call.tiles
    return aligned(call.ball.dim * t.cols * t.real) + 5 * aligned(t.cols * t.real)


cdef char *lay_out_tile(const Call *call, char *at, BallTile *tile) noexcept nogil:
    """Place the buffers of a tile of queries; returns the end."""
    cdef const rv_softmax_tiles *t = call.tiles
    tile.qt = at
    at += aligned(call.ball.dim * t.cols * t.real)
    return lay_out_rows(aligned(t.cols * t.real), at, &tile.rows)


cdef Py_ssize_t scratch_bytes(const Call *call) noexcept nogil:
    """Bytes of one thread's BallScratch, a multiple of 64."""
    cdef const rv_softmax_tiles *t = call.tiles
    cdef Py_ssize_t wide = aligned(call.ball.dim * t.real) + 64
    cdef Py_ssize_t total = 10 * aligned(t.key_tile * t.real)
    total += aligned(t.key_tile * t.cols * t.real) + t.cols * wide
    total += aligned(t.cols * sizeof(void *)) + aligned(t.key_tile * sizeof(double))
    if call.ball.tiles.load != NULL:
        total += aligned(t.key_tile * call.ball.dim * t.real)
        total += aligned(t.key_tile * call.ball.dim_v * t.real)
    return total


cdef char *lay_out(const Call *call, char *at, BallScratch *scratch) noexcept nogil:
    """Place the buffers of one key tile; returns the end."""
    cdef const rv_softmax_tiles *t = call.tiles
    at = lay_out_rows(aligned(t.key_tile * t.real), at, &scratch.key_rows)
    at = lay_out_rows(aligned(t.key_tile * t.real), at, &scratch.value_rows)
    scratch.dot = at
    at += aligned(t.key_tile * t.cols * t.real)
    scratch.norms = <double *> at
    at += aligned(t.key_tile * sizeof(double))
    scratch.wide = at
    at += t.cols * (aligned(call.ball.dim * t.real) + 64) + aligned(t.cols * sizeof(void *))
    scratch.key_tile = at
    if call.ball.tiles.load != NULL:
        at += aligned(t.key_tile * call.ball.dim * t.real)
    scratch.value_tile = at
    if call.ball.tiles.load != NULL:
        at += aligned(t.key_tile * call.ball.dim_v * t.real)
    return at


cdef void load_queries(const Call *call, const Segment *segment, int kv_head, Py_ssize_t row,
                       int rows, int cols, BallTile *tile,
                       BallScratch *scratch) noexcept nogil:
    """Pack x(q) of `rows` packed rows from `row` on; the lanes behind repeat the last one."""
    cdef const Ball *ball = call.ball
    cdef const void **pointers = lane_pointers(call, scratch)
    cdef Py_ssize_t r
    cdef int lane, head
    for lane in range(cols):
        r = row + min(lane, rows - 1)
        head = kv_head * call.group + <int> (r % call.group)
        pointers[lane] = (segment.ball_q + head * ball.q_head
                          + (r // call.group) * ball.q_row)
    pack_lanes(call, cols, tile, scratch)


cdef void load_key_lanes(const Call *call, const Segment *segment, int kv_head,
                         int64_t first_key, int lanes, int cols, BallTile *tile,
                         BallScratch *scratch) noexcept nogil:
    """Pack the points of `lanes` keys from `first_key` on as those of queries."""
    cdef const void **pointers = lane_pointers(call, scratch)
    cdef int lane
    for lane in range(cols):
        pointers[lane] = (segment.ball_k + kv_head * call.ball.k_head
                          + (first_key + min(lane, lanes - 1)) * call.ball.k_row)
    pack_lanes(call, cols, tile, scratch)


cdef inline const void **lane_pointers(const Call *call,
                                       const BallScratch *scratch) noexcept nogil:
    cdef Py_ssize_t wide = aligned(call.ball.dim * call.tiles.real) + 64
    return <const void **> (scratch.wide + call.tiles.cols * wide)


cdef void pack_lanes(const Call *call, int cols, BallTile *tile,
                     BallScratch *scratch) noexcept nogil:
    """Pack the points of the stored rows that the lanes' pointers lead to."""
    cdef const Ball *ball = call.ball
    cdef const rv_softmax_tiles *t = call.tiles
    cdef Py_ssize_t wide = aligned(ball.dim * t.real) + 64, d
    cdef const void **pointers = lane_pointers(call, scratch)
    cdef const char *stored
    cdef int lane
    for lane in range(cols):
        stored = <const char *> pointers[lane]
        ball.tiles.square_norms(stored, 0, 1, ball.dim, 0 if ball.tangent else ball.curvature,
                                scratch.norms + lane)
        pointers[lane] = scratch.wide + lane * wide
        call.decode.load_query(stored, ball.dim, 1.0, scratch.wide + lane * wide)
    ball.tiles.rows(scratch.norms, cols, ball.curvature, ball.tangent, &tile.rows)
    ball.reals.pack(pointers, cols, ball.dim, 1.0, tile.qt)
    for d in range(ball.dim):
        for lane in range(cols):
            set_real(call, tile.qt, d * cols + lane,
                     real_at(call, tile.qt, d * cols + lane)
                     * real_at(call, <const char *> tile.rows.alpha, lane))


cdef void load_keys(const Call *call, const Segment *segment, int kv_head, int64_t first_key,
                    int nk, BallScratch *scratch) noexcept nogil:
    """Find the factors of nk keys, and their rows as reals."""
    cdef const Ball *ball = call.ball
    load_rows(call, segment.ball_k + kv_head * ball.k_head + first_key * ball.k_row,
              ball.k_row, nk, scratch)


cdef void load_rows(const Call *call, const char *stored, Py_ssize_t stride, int n,
                    BallScratch *scratch) noexcept nogil:
    """Find the factors of n rows that take the place of keys, and the rows as reals."""
    cdef const Ball *ball = call.ball
    cdef Py_ssize_t ld = stride // call.tiles.item
    scratch.keys = stored
    scratch.ldk = ld
    ball.tiles.square_norms(stored, ld, n, ball.dim, 0 if ball.tangent else ball.curvature,
                            scratch.norms)
    ball.tiles.rows(scratch.norms, n, ball.curvature, ball.tangent, &scratch.key_rows)
    if ball.tiles.load != NULL:
        ball.tiles.load(stored, ld, n, ball.dim, scratch.key_tile)
        scratch.keys = scratch.key_tile
        scratch.ldk = ball.dim


cdef void load_values(const Call *call, const Segment *segment, int kv_head,
                      int64_t first_key, int nk, BallScratch *scratch) noexcept nogil:
    """Find the factors of nk values, and their rows as reals."""
    cdef const Ball *ball = call.ball
    cdef Py_ssize_t ld = ball.v_row // call.tiles.item
    scratch.values = segment.ball_v + kv_head * ball.v_head + first_key * ball.v_row
    scratch.ldv = ld
    ball.tiles.square_norms(scratch.values, ld, nk, ball.dim_v,
                            0 if ball.tangent else ball.curvature, scratch.norms)
    ball.tiles.rows(scratch.norms, nk, ball.curvature, ball.tangent, &scratch.value_rows)
    if ball.tiles.load != NULL:
        ball.tiles.load(scratch.values, ld, nk, ball.dim_v, scratch.value_tile)
        scratch.values = scratch.value_tile
        scratch.ldv = ball.dim_v


cdef void add_scores(const Call *call, const BallTile *tile, int nk, int cols,
                     const BallScratch *scratch, char *s) noexcept nogil:
    """Subtract the distances of nk keys from the scores s[nk][cols]."""
    cdef const Ball *ball = call.ball
    ball.reals.scores(tile.qt, cols, scratch.keys, scratch.ldk, nk, ball.dim, scratch.dot)
    ball.tiles.scores(s, scratch.dot, tile.qt, cols, scratch.keys, scratch.ldk, nk, ball.dim,
                      &tile.rows, &scratch.key_rows, ball.curvature, ball.scale)


cdef void differentiate_scores(const Call *call, const BallTile *tile, int nk, int cols,
                               const BallScratch *scratch, char *ds, const char *raw,
                               char *sums, char *mass, char *pairs,
                               char *distance) noexcept nogil:
    """Take dS[nk][cols], which is consumed, through the distances that were added last.

    sums[dim][cols] takes what the other points do; mass, pairs and distance, which may be
    null, are sums of each lane. `raw` is null or the scores.
    """
    cdef const Ball *ball = call.ball
    ball.tiles.slopes(ds, scratch.dot, tile.qt, cols, scratch.keys, scratch.ldk, nk, ball.dim,
                      &tile.rows, &scratch.key_rows, ball.curvature, ball.scale, mass, pairs,
                      distance)
    if raw != NULL:
        ball.reals.accumulate_visible(ds, raw, cols, scratch.keys, scratch.ldk, nk, ball.dim,
                                      sums)
    else:
        ball.reals.accumulate(ds, cols, scratch.keys, scratch.ldk, nk, ball.dim, sums)


cdef void accumulate(const Call *call, int nk, int cols, char *p, const char *raw,
                     const BallScratch *scratch, char *o) noexcept nogil:
    """Add nk values to o[dim_v + 1][cols]; p is consumed, raw is null or the scores."""
    cdef const Ball *ball = call.ball
    ball.tiles.weigh(p, raw, nk, cols, &scratch.value_rows,
                     o + ball.dim_v * cols * call.tiles.real)
    if raw != NULL:
        ball.reals.accumulate_visible(p, raw, cols, scratch.values, scratch.ldv, nk,
                                      ball.dim_v, o)
    else:
        ball.reals.accumulate(p, cols, scratch.values, scratch.ldv, nk, ball.dim_v, o)


cdef inline Py_ssize_t padded(const Call *call, Py_ssize_t n) noexcept nogil:
    return (n + call.decode.lanes - 1) // call.decode.lanes * call.decode.lanes


cdef Py_ssize_t row_scratch_bytes(const Call *call, Py_ssize_t rows) noexcept nogil:
    """Bytes of a BallRows' buffers."""
    cdef Py_ssize_t real = call.decode.real, tile = call.decode.key_tile
    return (128 + rows * padded(call, call.ball.dim) * real
            + 5 * (padded(call, rows) + tile) * real
            + rows * tile * real + tile * real
            + max(rows, tile) * sizeof(double))


cdef void lay_out_row_scratch(const Call *call, char *at, Py_ssize_t rows,
                              BallRows *scratch) noexcept nogil:
    """Place the buffers of a decoded chunk."""
    cdef Py_ssize_t real = call.decode.real, tile = call.decode.key_tile
    scratch.norms = <double *> aligned(<Py_ssize_t> at)
    at = <char *> (scratch.norms + max(rows, tile))
    scratch.q = at
    at += rows * padded(call, call.ball.dim) * real
    at = lay_out_rows(padded(call, rows) * real, at, &scratch.query_rows)
    at = lay_out_rows(tile * real, at, &scratch.key_rows)
    scratch.squares = at
    at += rows * tile * real
    scratch.repair = at


cdef void load_query_rows(const Call *call, const Segment *segment, int first_head, int rows,
                          BallRows *scratch) noexcept nogil:
    """Write x(q) of every row; row r is query r // group of its head."""
    cdef const Ball *ball = call.ball
    cdef int r, head, per_head = call.group * <int> segment.lq
    cdef Py_ssize_t ldq = padded(call, ball.dim), real = call.decode.real
    cdef const char *stored
    for r in range(rows):
        head = (first_head + r // per_head) * call.group + r % call.group
        stored = (segment.ball_q + head * ball.q_head
                  + (r // call.group) % segment.lq * ball.q_row)
        ball.tiles.square_norms(stored, 0, 1, ball.dim, 0 if ball.tangent else ball.curvature,
                                scratch.norms + r)
    ball.tiles.rows(scratch.norms, rows, ball.curvature, ball.tangent, &scratch.query_rows)
    for r in range(rows):
        head = (first_head + r // per_head) * call.group + r % call.group
        stored = (segment.ball_q + head * ball.q_head
                  + (r // call.group) % segment.lq * ball.q_row)
        call.decode.load_query(
            stored, ball.dim, real_at(call, <const char *> scratch.query_rows.alpha, r),
            scratch.q + r * ldq * real)


cdef void add_row_scores(const Call *call, const Segment *segment, int first_head, int rows,
                         int64_t first_key, int nk, char *s, Py_ssize_t lds,
                         BallRows *scratch) noexcept nogil:
    """Subtract the distances of nk keys from the scores s[rows][lds]."""
    cdef const Ball *ball = call.ball
    cdef int per_head = call.group * <int> segment.lq, heads = rows // per_head, h, r, j
    cdef Py_ssize_t ldq = padded(call, ball.dim), real = call.decode.real
    cdef Py_ssize_t ld = ball.k_row // call.tiles.item
    cdef const char *keys
    cdef char *squares
    for h in range(heads):
        keys = segment.ball_k + (first_head + h) * ball.k_head + first_key * ball.k_row
        ball.tiles.square_norms(keys, ld, nk, ball.dim, 0 if ball.tangent else ball.curvature,
                                scratch.norms)
        ball.tiles.rows(scratch.norms, nk, ball.curvature, ball.tangent, &scratch.key_rows)
        call.decode.scores(scratch.q + h * per_head * ldq * real, ldq, keys, ld, 0, nk, 1,
                           per_head, ball.dim, scratch.squares, lds)
        for r in range(h * per_head, (h + 1) * per_head):
            squares = scratch.squares + (r - h * per_head) * lds * real
            if ball.tiles.row_squares(squares, nk, &scratch.query_rows, r, &scratch.key_rows,
                                      scratch.repair):
                for j in range(nk):
                    if real_at(call, scratch.repair, j) != 0:
                        set_real(call, squares, j, ball.tiles.square_difference(
                            scratch.q + r * ldq * real, keys + j * ball.k_row,
                            real_at(call, <const char *> scratch.key_rows.alpha, j),
                            ball.dim))
            ball.tiles.row_scores(s + r * lds * real, squares, nk, &scratch.query_rows, r,
                                  &scratch.key_rows, ball.curvature, ball.scale)
            mark_padding(call, s + r * lds * real, nk)


cdef inline void mark_padding(const Call *call, char *s, int nk) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(nk, padded(call, nk)):
        set_real(call, s, j, -INFINITY)


cdef void accumulate_rows(const Call *call, const Segment *segment, int first_head, int rows,
                          int64_t first_key, int nk, char *p, const char *raw, Py_ssize_t lds,
                          char *o, Py_ssize_t ldo, BallRows *scratch) noexcept nogil:
    """Add nk values to o[rows][ldo], lambda - 1 behind them; p is consumed."""
    cdef const Ball *ball = call.ball
    cdef int per_head = call.group * <int> segment.lq, heads = rows // per_head, h, r
    cdef Py_ssize_t real = call.decode.real, ld = ball.v_row // call.tiles.item
    cdef const char *values
    cdef const char *row_raw
    for h in range(heads):
        values = segment.ball_v + (first_head + h) * ball.v_head + first_key * ball.v_row
        ball.tiles.square_norms(values, ld, nk, ball.dim_v,
                                0 if ball.tangent else ball.curvature, scratch.norms)
        ball.tiles.rows(scratch.norms, nk, ball.curvature, ball.tangent, &scratch.key_rows)
        for r in range(h * per_head, (h + 1) * per_head):
            row_raw = raw + r * lds * real if raw != NULL else NULL
            ball.tiles.row_weigh(p + r * lds * real, row_raw, nk, &scratch.key_rows,
                                 o + (r * ldo + padded(call, ball.dim_v)) * real)
        r = h * per_head
        row_raw = raw + r * lds * real if raw != NULL else NULL
        call.decode.accumulate(p + r * lds * real, row_raw, lds, values, ld, 0,
                               nk, 1, per_head, ball.dim_v, o + r * ldo * real, ldo)


cdef void finish_row(const Call *call, const char *l, const char *o,
                     char *out) noexcept nogil:
    """Divide one row's sums by l."""
    cdef double total = real_at(call, l, 0)
    cdef Py_ssize_t d
    for d in range(call.ball.dim_v + 1):
        set_real(call, out, d, real_at(
            call, o, d if d < call.ball.dim_v else padded(call, call.ball.dim_v))
            / (total if total != 0 else 1))
