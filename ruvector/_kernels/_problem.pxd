"""One attention call as the nogil drivers see it: plain pointers, strides and numbers."""

from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memset

from ruvector._kernels._dispatch cimport (
    rv_ball_tiles, rv_decode_tiles, rv_rotary_tiles, rv_softmax_tiles, rv_table,
)


cdef struct Ball:
    # The part of scores and values that lies in a Poincare ball. `reals` are the tiles over
    # reals; scale is 2/sqrt(c) times what a distance counts, in units of the scores.
    const rv_ball_tiles *tiles
    const rv_softmax_tiles *reals
    Py_ssize_t dim, dim_v
    Py_ssize_t q_head, q_row, k_head, k_row, v_head, v_row, out_head, out_row
    double curvature, scale
    bint tangent


cdef struct Rotary:
    # Queries and keys are turned by their positions as they are read, and then reals, which
    # `reals` and `decode` are the tiles over. A row of the table is dim reals.
    const rv_rotary_tiles *tiles
    const rv_softmax_tiles *reals
    const rv_decode_tiles *decode
    const char *table
    bint neighbours


cdef struct Call:
    # What all sequences of one call share. Strides are in bytes and may be zero or negative.
    # softcap is 0 where there is none; left and right are -1 where that side is open.
    # slopes, sink_logits, positions, ball and rotary may be null. `unit` turns natural scores
    # into those that are computed: log2(e) for the softmax, 1 where they are to come out as is.
    const rv_softmax_tiles *tiles
    const rv_decode_tiles *decode
    const Ball *ball
    const Rotary *rotary
    Py_ssize_t dim, dim_v
    int heads, kv_heads, group
    Py_ssize_t q_head, q_row, k_head, k_row, v_head, v_row
    Py_ssize_t out_head, out_row, lse_head, lse_row
    Py_ssize_t bias_head, bias_row, bias_key, mask_head, mask_row, mask_key
    Py_ssize_t k_scale_head, v_scale_head
    double scale, softcap, unit
    bint causal, symmetric
    int64_t left, right, num_sinks
    const char *slopes
    const char *sink_logits
    const int64_t *positions


cdef struct Segment:
    # One sequence of queries over one sequence of keys, all heads. bias, mask, lse, weights
    # and the scales, factors of the rows of k and v as contiguous floats of each head, may be
    # null; positions are for a call with rotary ones. `weights`, for one query only, takes the
    # probabilities as contiguous (heads, lk) reals.
    const char *q
    const char *k
    const char *v
    const char *ball_q
    const char *ball_k
    const char *ball_v
    const char *bias
    const char *mask
    const char *k_scales
    const char *v_scales
    const int64_t *q_positions
    const int64_t *k_positions
    char *out
    char *ball_out
    char *lse
    char *weights
    Py_ssize_t lq, lk
    int64_t offset


cdef struct Bounds:
    # The keys a query sees before masks: [lower, upper) and [0, sink).
    int64_t lower, upper, sink


cdef inline void start_call(Call *call, const rv_table *table, int dtype, int heads,
                            int kv_heads) noexcept nogil:
    # A softmax without options: the tiles of a storage type, and how heads share keys.
    memset(call, 0, sizeof(Call))
    call.tiles = table.softmax[dtype]
    call.decode = table.decode[dtype]
    call.heads, call.kv_heads = heads, kv_heads
    call.group = heads // kv_heads if kv_heads else 0
    call.left = call.right = -1
    call.unit = 1.4426950408889634


cdef inline int query_tiles(const Call *call) noexcept nogil:
    # Tiles of queries that share one tile of keys; turning one is worth more than one.
    return call.tiles.query_tiles if call.rotary == NULL else max(4, call.tiles.query_tiles)


cdef inline Py_ssize_t sum_rows(const Call *call) noexcept nogil:
    # Entries that are summed for a query: values, and with a ball its values and lambda - 1.
    return call.dim_v if call.ball == NULL else call.dim_v + call.ball.dim_v + 1


cdef inline int64_t query_position(const Call *call, const Segment *segment,
                                   Py_ssize_t i) noexcept nogil:
    if call.positions != NULL:
        return call.positions[i]
    return i + segment.offset


cdef inline Bounds query_bounds(const Call *call, const Segment *segment,
                                Py_ssize_t i) noexcept nogil:
    cdef int64_t position = query_position(call, segment, i)
    cdef Bounds seen
    cdef bint everywhere = call.symmetric and position < call.num_sinks
    seen.lower = 0
    seen.upper = segment.lk
    seen.sink = 0
    if not everywhere and (call.left >= 0 or call.right >= 0):
        if call.left >= 0:
            seen.lower = max(0, position - call.left)
        if call.right >= 0:
            seen.upper = min(seen.upper, position + call.right + 1)
        seen.sink = min(call.num_sinks, segment.lk)
    if call.causal:
        seen.upper = min(seen.upper, position + 1)
        seen.sink = min(seen.sink, position + 1)
    seen.upper = max(seen.upper, 0)
    seen.lower = min(seen.lower, seen.upper)
    seen.sink = max(seen.sink, 0)
    return seen


cdef inline Bounds segment_bounds(const Call *call, const Segment *segment) noexcept nogil:
    # What the queries of a segment see together: nothing outside [lower, upper) and [0, sink).
    cdef Bounds hull = query_bounds(call, segment, 0), seen
    cdef Py_ssize_t i
    for i in range(1, segment.lq):
        seen = query_bounds(call, segment, i)
        hull.lower = min(hull.lower, seen.lower)
        hull.upper = max(hull.upper, seen.upper)
        hull.sink = max(hull.sink, seen.sink)
    return hull


cdef inline bint any_visible(const Bounds *hull, int64_t first, int64_t last) noexcept nogil:
    # Does the hull meet the keys [first, last)?
    return first < hull.sink or (first < hull.upper and last > hull.lower)


cdef inline double real_at(const Call *call, const char *reals,
                           Py_ssize_t index) noexcept nogil:
    if call.tiles.real == sizeof(double):
        return (<const double *> reals)[index]
    return (<const float *> reals)[index]


cdef inline void set_real(const Call *call, char *reals, Py_ssize_t index,
                          double value) noexcept nogil:
    if call.tiles.real == sizeof(double):
        (<double *> reals)[index] = value
    else:
        (<float *> reals)[index] = <float> value


cdef inline void start_empty(const Call *call, char *m, char *l,
                             Py_ssize_t index) noexcept nogil:
    # The maximum starts at the lowest finite number: -inf - m is then never NaN.
    set_real(call, m, index, -DBL_MAX if call.tiles.real == sizeof(double) else -FLT_MAX)
    set_real(call, l, index, 0.0)


cdef inline void start_state(const Call *call, Py_ssize_t head, char *m, char *l,
                             Py_ssize_t index) noexcept nogil:
    # A sink logit is a score that is there before any key, without a value.
    cdef double logit
    if call.sink_logits != NULL:
        logit = real_at(call, call.sink_logits, head)
        if logit != -INFINITY:
            set_real(call, m, index, logit * 1.4426950408889634)
            # NaN for a logit that is not finite.
            set_real(call, l, index, logit - logit + 1.0)
            return
    start_empty(call, m, l, index)
