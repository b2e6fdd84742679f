"""What both passes of the gradient share: the arrays they write, and a thread's scratch."""

from libc.string cimport memset

from ruvector._kernels cimport _ball, _prefill
from ruvector._kernels._ball cimport BallTile
from ruvector._kernels._dispatch cimport rv_backward_tiles, rv_softmax_tiles
from ruvector._kernels._prefill cimport Scratch
from ruvector._kernels._problem cimport Call


cdef struct Gradients:
    # What all sequences share: byte strides of the gradients, which have the storage type of
    # the arrays they belong to. A gradient that is not wanted is null in every GradientSegment.
    const rv_backward_tiles *tiles
    Py_ssize_t out_head, out_row, lse_head, lse_row
    Py_ssize_t q_head, q_row, k_head, k_row, v_head, v_row
    Py_ssize_t bias_head, bias_row, bias_key


cdef struct BallGradients:
    # What a ball's points of one sequence get, contiguous reals: q (heads, lq, ball dim) and
    # k (kv_heads, lk, ball dim), less x times `mass`, and beside each row the sums `mass` and
    # `pairs` of simd/ball.inc.h; `distances` (heads, lq), which may be null, is
    # log2(e) sum_j dS asinh(sqrt(u)).
    char *q
    char *q_mass
    char *q_pairs
    char *k
    char *k_mass
    char *k_pairs
    char *distances


cdef struct GradientSegment:
    # One sequence, all heads. lse may be null; `slopes` takes sum_j dS |pos - j| of each row
    # as (heads, lq) reals, `delta` and `lse2` are scratch of that shape; with a ball `delta` is
    # given.
    const char *out
    const char *lse
    char *q
    char *k
    char *v
    char *bias
    char *slopes
    char *delta
    char *lse2
    BallGradients ball


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


cdef inline Py_ssize_t work_bytes(const Call *call) noexcept nogil:
    cdef const rv_softmax_tiles *t = call.tiles
    cdef Py_ssize_t lane_row = aligned(t.cols * t.real)
    cdef Py_ssize_t width = call.dim + call.dim_v
    cdef Py_ssize_t total = aligned(_prefill.scratch_bytes(call)) + 64
    total += 2 * ((width + 2) * lane_row) + (3 * t.key_tile + 8) * lane_row
    total += aligned(t.key_tile * call.dim * t.real) + aligned(t.key_tile * call.dim_v * t.real)
    if call.ball != NULL:
        total += _ball.tile_bytes(call) + (call.ball.dim + 3) * lane_row
    return total + 2 * aligned(t.cols * sizeof(void *))


cdef inline void lay_out(const Call *call, char *memory, Work *work) noexcept nogil:
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
