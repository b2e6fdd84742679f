"""Softmax attention as a stream of key tiles: the compiled engine's Python face.

Arguments and results are those of the NumPy twin, fallback/softmax.py, whose docstrings
describe them. Here arrays become pointers and strides, and nothing is computed: the engine
does that without the GIL.
"""

cimport numpy as cnp
from libc.math cimport sqrt
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ruvector._kernels cimport _dispatch
from ruvector._kernels._dispatch cimport RV_BF16, RV_F16, RV_F32, RV_F64, RV_I8
from ruvector._kernels._engine cimport run
from ruvector._kernels._merge cimport States, merge_states
from ruvector._kernels._problem cimport Ball, Call, Rotary, Segment, start_call
from ruvector._kernels._scores cimport Ranking, run_top_k, run_weights

cnp.import_array()

# Multiply-adds of one plain query below which handing back the GIL costs more than it gives.
cdef Py_ssize_t BRIEF_WORK = 1 << 16


cdef int dtype_of(cnp.ndarray array) except -1:
    cdef int number = cnp.PyArray_TYPE(array)
    if number == cnp.NPY_FLOAT32:
        return RV_F32
    if number == cnp.NPY_FLOAT64:
        return RV_F64
    if number == cnp.NPY_FLOAT16:
        return RV_F16
    if number == cnp.NPY_UINT16:
        return RV_BF16
    raise TypeError(f"no kernel for arrays of {array.dtype}")


cdef struct Stored:
    # The tiles of a call whose keys and values are stored in another type than its queries.
    _dispatch.rv_softmax_tiles tiles
    _dispatch.rv_decode_tiles decode


cdef inline const char *data(cnp.ndarray array) noexcept:
    return <const char *> cnp.PyArray_DATA(array)


cdef inline Py_ssize_t stride(cnp.ndarray array, int axis) noexcept:
    return cnp.PyArray_STRIDE(array, axis)


cdef inline Py_ssize_t length(cnp.ndarray array, int axis) noexcept:
    return cnp.PyArray_DIM(array, axis)


cdef int describe(Call *call, cnp.ndarray query, cnp.ndarray key, spec) except -1:
    """Fill in what the kernels share: tiles, heads, strides of q and k, the score function."""
    cdef object option
    start_call(call, _dispatch.tiles(), dtype_of(query), <int> length(query, 1),
               <int> length(key, 1))
    call.dim = length(query, 3)
    call.q_head, call.q_row = stride(query, 1), stride(query, 2)
    call.k_head, call.k_row = stride(key, 1), stride(key, 2)
    call.scale = spec.scale
    option = spec.softcap
    call.softcap = 0.0 if option is None else option
    call.causal = spec.causal
    call.symmetric = spec.symmetric
    call.left, call.right, call.num_sinks = spec.left, spec.right, spec.num_sinks
    option = spec.slopes
    if option is not None:
        call.slopes = data(option)
    option = spec.sink_logits
    if option is not None:
        call.sink_logits = data(option)
    option = spec.positions
    if option is not None:
        call.positions = <const int64_t *> data(option)
    option = spec.bias
    if option is not None:
        call.bias_head, call.bias_row = stride(option, 1), stride(option, 2)
        call.bias_key = stride(option, 3)
    option = spec.mask
    if option is not None:
        call.mask_head, call.mask_row = stride(option, 1), stride(option, 2)
        call.mask_key = stride(option, 3)
    return 0


cdef int describe_stored(Call *call, Stored *stored, cnp.ndarray query, cnp.ndarray key,
                         spec) except -1:
    """Let float32 queries read keys and values of another storage type, perhaps scaled."""
    cdef const _dispatch.rv_table *table = _dispatch.tiles()
    cdef int own = dtype_of(query), other = own
    cdef object option = spec.key_scales
    if option is not None:
        call.k_scale_head = stride(option, 1)
    option = spec.value_scales
    if option is not None:
        call.v_scale_head = stride(option, 1)
    if cnp.PyArray_TYPE(key) == cnp.NPY_INT8:
        other = RV_I8
    else:
        other = dtype_of(key)
    if other == own:
        return 0
    if own != RV_F32 or other == RV_F64:
        raise TypeError(f"no kernel for queries of {query.dtype} and keys of {key.dtype}")
    stored.tiles, stored.decode = table.wide[other][0], table.decode[other][0]
    stored.tiles.pack = table.softmax[own].pack
    stored.tiles.finish = table.softmax[own].finish
    stored.decode.load_query = table.decode[own].load_query
    stored.decode.finish = table.decode[own].finish
    call.tiles, call.decode = &stored.tiles, &stored.decode
    return 0


cdef int describe_rotary(Call *call, Rotary *rotary, cnp.ndarray query, spec) except -1:
    """Add rotary positions to a call where the specification has them."""
    cdef int dtype = dtype_of(query), reals = RV_F64 if dtype == RV_F64 else RV_F32
    cdef const _dispatch.rv_table *table = _dispatch.tiles()
    cdef object option = spec.rotary
    if option is None:
        return 0
    rotary.tiles = table.rotary[dtype]
    rotary.reals, rotary.decode = table.softmax[reals], table.decode[reals]
    rotary.table = data(option.table)
    rotary.neighbours = option.neighbours
    call.rotary = rotary
    call.tiles = table.wide[dtype]
    return 0


cdef Segment *batch_segments(Py_ssize_t count, cnp.ndarray query, cnp.ndarray key,
                             spec) except NULL:
    """One segment a batch entry, with q, k, bias and mask filled in."""
    cdef Segment *segments = <Segment *> malloc(max(count, 1) * sizeof(Segment))
    cdef Segment *segment
    cdef object bias = spec.bias, mask = spec.mask, rotary = spec.rotary
    cdef object k_scales = spec.key_scales, v_scales = spec.value_scales
    cdef bint bottom_right = spec.bottom_right
    cdef Py_ssize_t b
    if segments == NULL:
        raise MemoryError("no memory for the attention engine's segments")
    memset(segments, 0, max(count, 1) * sizeof(Segment))
    for b in range(count):
        segment = segments + b
        segment.q = data(query) + b * stride(query, 0)
        segment.k = data(key) + b * stride(key, 0)
        segment.lq, segment.lk = length(query, 2), length(key, 2)
        segment.offset = segment.lk - segment.lq if bottom_right else 0
        if bias is not None:
            segment.bias = data(bias) + b * stride(bias, 0)
        if mask is not None:
            segment.mask = data(mask) + b * stride(mask, 0)
        if k_scales is not None:
            segment.k_scales = data(k_scales) + b * stride(k_scales, 0)
        if v_scales is not None:
            segment.v_scales = data(v_scales) + b * stride(v_scales, 0)
        if rotary is not None:
            segment.q_positions = entry_positions(rotary.query_positions, b)
            segment.k_positions = entry_positions(rotary.key_positions, b)
    return segments


cdef inline const int64_t *entry_positions(cnp.ndarray positions, Py_ssize_t b) noexcept:
    return <const int64_t *> (data(positions) + b * stride(positions, 0))


cdef int cut_segments(const Call *call, Segment *segments, const Segment *whole, spec,
                      Py_ssize_t count) except -1:
    """The sequences of a packed problem as segments of `whole`."""
    cdef const int64_t *ends_q = <const int64_t *> data(spec.cu_seqlens_q)
    cdef const int64_t *ends_k = <const int64_t *> data(spec.cu_seqlens_k)
    cdef bint bottom_right = spec.bottom_right
    cdef Segment *segment
    cdef Py_ssize_t s
    for s in range(count):
        segment = segments + s
        segment[0] = whole[0]
        segment.lq, segment.lk = ends_q[s + 1] - ends_q[s], ends_k[s + 1] - ends_k[s]
        segment.offset = segment.lk - segment.lq if bottom_right else 0
        segment.q += ends_q[s] * call.q_row
        segment.k += ends_k[s] * call.k_row
        segment.v += ends_k[s] * call.v_row
        segment.out += ends_q[s] * call.out_row
        if segment.lse != NULL:
            segment.lse += ends_q[s] * call.lse_row
        if segment.bias != NULL:
            segment.bias += ends_q[s] * call.bias_row + ends_k[s] * call.bias_key
        if segment.mask != NULL:
            segment.mask += ends_q[s] * call.mask_row + ends_k[s] * call.mask_key
        if segment.k_scales != NULL:
            segment.k_scales += ends_k[s] * <Py_ssize_t> sizeof(float)
        if segment.v_scales != NULL:
            segment.v_scales += ends_k[s] * <Py_ssize_t> sizeof(float)
        if segment.q_positions != NULL:
            segment.q_positions += ends_q[s]
            segment.k_positions += ends_k[s]
    return 0


def attend(cnp.ndarray query not None, cnp.ndarray key not None, cnp.ndarray value not None,
           cnp.ndarray out not None, lse, spec, int threads):
    """Compute the attention state (o, L) of every query row."""
    cdef Call call
    cdef Stored stored
    cdef Rotary rotary
    cdef Segment *segments
    cdef Segment *sequences
    cdef Py_ssize_t batch = length(query, 0), count, b
    describe(&call, query, key, spec)
    describe_stored(&call, &stored, query, key, spec)
    describe_rotary(&call, &rotary, query, spec)
    if length(query, 2) == 0 or batch == 0 or call.heads == 0:
        return
    call.dim_v = length(value, 3)
    call.v_head, call.v_row = stride(value, 1), stride(value, 2)
    call.out_head, call.out_row = stride(out, 1), stride(out, 2)
    if lse is not None:
        call.lse_head, call.lse_row = stride(lse, 1), stride(lse, 2)
    segments = batch_segments(batch, query, key, spec)
    try:
        for b in range(batch):
            segments[b].v = data(value) + b * stride(value, 0)
            segments[b].out = <char *> data(out) + b * stride(out, 0)
            if lse is not None:
                segments[b].lse = <char *> data(lse) + b * stride(lse, 0)
        if spec.cu_seqlens_q is None:
            with nogil:
                run(&call, segments, batch, threads)
            return
        count = length(spec.cu_seqlens_q, 0) - 1
        sequences = <Segment *> malloc(max(count, 1) * sizeof(Segment))
        if sequences == NULL:
            raise MemoryError("no memory for the attention engine's segments")
        try:
            cut_segments(&call, sequences, segments, spec, count)
            run_ragged(&call, sequences, count, threads)
        finally:
            free(sequences)
    finally:
        free(segments)


cdef int run_ragged(Call *call, Segment *sequences, Py_ssize_t count, int threads) except -1:
    """Run packed sequences: together, or one by one where rows have positions of their own."""
    cdef const int64_t *positions = call.positions
    cdef Py_ssize_t s, row = 0
    if positions == NULL:
        with nogil:
            run(call, sequences, count, threads)
        return 0
    for s in range(count):
        call.positions = positions + row
        row += sequences[s].lq
        with nogil:
            run(call, sequences + s, 1, threads)
    return 0


cdef int describe_ball(Call *call, Ball *ball, cnp.ndarray query, cnp.ndarray key,
                       cnp.ndarray ball_query, cnp.ndarray ball_key, spec,
                       ball_spec) except -1:
    """Fill in a call with a ball; without a dot product its query and key have no entries."""
    cdef int dtype = dtype_of(ball_query)
    cdef const _dispatch.rv_table *table = _dispatch.tiles()
    describe(call, ball_query, ball_key, spec)
    memset(ball, 0, sizeof(Ball))
    ball.tiles = table.ball[dtype]
    ball.reals = table.softmax[<int> (RV_F64 if dtype == RV_F64 else RV_F32)]
    ball.dim = call.dim
    ball.q_head, ball.q_row, ball.k_head, ball.k_row = (
        call.q_head, call.q_row, call.k_head, call.k_row)
    ball.curvature = ball_spec.curvature
    ball.scale = 2 / sqrt(ball.curvature) * <double> ball_spec.distance_scale
    ball.tangent = ball_spec.tangent
    call.ball = ball
    call.dim = call.q_head = call.q_row = call.k_head = call.k_row = 0
    if query is not None:
        call.dim = length(query, 3)
        call.q_head, call.q_row = stride(query, 1), stride(query, 2)
        call.k_head, call.k_row = stride(key, 1), stride(key, 2)
    return 0


cdef Segment *ball_segments(Py_ssize_t count, cnp.ndarray query, cnp.ndarray key,
                            cnp.ndarray ball_query, cnp.ndarray ball_key,
                            spec) except NULL:
    """One segment a batch entry, with both pairs of queries and keys filled in."""
    cdef Segment *segments = batch_segments(count, ball_query, ball_key, spec)
    cdef Py_ssize_t b
    for b in range(count):
        segments[b].ball_q, segments[b].ball_k = segments[b].q, segments[b].k
        segments[b].q = segments[b].k = NULL
        if query is not None:
            segments[b].q = data(query) + b * stride(query, 0)
            segments[b].k = data(key) + b * stride(key, 0)
    return segments


def attend_ball(query, key, value, out, cnp.ndarray ball_query not None,
                cnp.ndarray ball_key not None, cnp.ndarray ball_value not None,
                cnp.ndarray ball_out not None, lse, spec, ball, int threads):
    """Compute the attention state of every query row with a part in the Poincare ball."""
    cdef Call call
    cdef Ball part
    cdef Segment *segments
    cdef Py_ssize_t batch = length(ball_query, 0), b
    describe_ball(&call, &part, query, key, ball_query, ball_key, spec, ball)
    if length(ball_query, 2) == 0 or batch == 0 or call.heads == 0:
        return
    part.dim_v = length(ball_value, 3)
    part.v_head, part.v_row = stride(ball_value, 1), stride(ball_value, 2)
    part.out_head, part.out_row = stride(ball_out, 1), stride(ball_out, 2)
    if value is not None:
        call.dim_v = length(value, 3)
        call.v_head, call.v_row = stride(value, 1), stride(value, 2)
        call.out_head, call.out_row = stride(out, 1), stride(out, 2)
    if lse is not None:
        call.lse_head, call.lse_row = stride(lse, 1), stride(lse, 2)
    segments = ball_segments(batch, query, key, ball_query, ball_key, spec)
    try:
        for b in range(batch):
            segments[b].ball_v = data(ball_value) + b * stride(ball_value, 0)
            segments[b].ball_out = <char *> data(ball_out) + b * stride(ball_out, 0)
            if value is not None:
                segments[b].v = data(value) + b * stride(value, 0)
                segments[b].out = <char *> data(out) + b * stride(out, 0)
            if lse is not None:
                segments[b].lse = <char *> data(lse) + b * stride(lse, 0)
        with nogil:
            run(&call, segments, batch, threads)
    finally:
        free(segments)


def weights_ball(query, key, cnp.ndarray ball_query not None, cnp.ndarray ball_key not None,
                 cnp.ndarray out not None, spec, ball, int threads):
    """Compute the softmax probabilities of every query row, hidden keys 0, with a ball."""
    cdef Call call
    cdef Ball part
    cdef Segment *segments
    cdef Py_ssize_t batch = length(ball_query, 0), b
    describe_ball(&call, &part, query, key, ball_query, ball_key, spec, ball)
    if cnp.PyArray_SIZE(out) == 0:
        return
    call.out_head, call.out_row = stride(out, 1), stride(out, 2)
    segments = ball_segments(batch, query, key, ball_query, ball_key, spec)
    try:
        for b in range(batch):
            segments[b].out = <char *> data(out) + b * stride(out, 0)
        with nogil:
            run_weights(&call, segments, batch, threads)
    finally:
        free(segments)


def weights(cnp.ndarray query not None, cnp.ndarray key not None, cnp.ndarray out not None,
            spec, int threads):
    """Compute the softmax probabilities of every query row, hidden keys 0."""
    cdef Call call
    cdef Stored stored
    cdef Rotary rotary
    cdef Segment *segments
    cdef Py_ssize_t batch = length(query, 0), b
    describe(&call, query, key, spec)
    describe_stored(&call, &stored, query, key, spec)
    describe_rotary(&call, &rotary, query, spec)
    if cnp.PyArray_SIZE(out) == 0:
        return
    call.out_head, call.out_row = stride(out, 1), stride(out, 2)
    segments = batch_segments(batch, query, key, spec)
    try:
        for b in range(batch):
            segments[b].out = <char *> data(out) + b * stride(out, 0)
        with nogil:
            run_weights(&call, segments, batch, threads)
    finally:
        free(segments)


def top_k(cnp.ndarray query not None, cnp.ndarray key not None, Py_ssize_t k,
          cnp.ndarray indices not None, cnp.ndarray weights not None, spec, int threads):
    """Find the k most attended keys of every query row."""
    cdef Call call
    cdef Stored stored
    cdef Rotary rotary
    cdef Segment *segments
    cdef Ranking *rankings
    cdef Py_ssize_t batch = length(query, 0), b
    describe(&call, query, key, spec)
    describe_stored(&call, &stored, query, key, spec)
    describe_rotary(&call, &rotary, query, spec)
    if cnp.PyArray_SIZE(indices) == 0:
        return
    call.unit = 1
    segments = batch_segments(batch, query, key, spec)
    rankings = <Ranking *> malloc(batch * sizeof(Ranking))
    try:
        if rankings == NULL:
            raise MemoryError("no memory for the attention engine's segments")
        for b in range(batch):
            rankings[b] = Ranking(
                k, stride(indices, 1), stride(indices, 2), stride(weights, 1),
                stride(weights, 2), <char *> data(indices) + b * stride(indices, 0),
                <char *> data(weights) + b * stride(weights, 0))
        with nogil:
            run_top_k(&call, segments, rankings, batch, threads)
    finally:
        free(rankings)
        free(segments)


def merge(cnp.ndarray outputs not None, cnp.ndarray lses not None, cnp.ndarray out not None,
          cnp.ndarray lse not None):
    """Combine the attention states of disjoint key sets, in index order."""
    cdef States states = States(
        length(outputs, 0), length(outputs, 1), length(outputs, 2), data(outputs), data(lses),
        stride(outputs, 0), stride(outputs, 1), stride(lses, 0), stride(lses, 1),
        <char *> data(out), <char *> data(lse), stride(out, 0), stride(lse, 0))
    cdef const _dispatch.rv_decode_tiles *tiles = _dispatch.tiles().decode[dtype_of(outputs)]
    cdef int failure
    with nogil:
        failure = merge_states(tiles, &states)
    if failure:
        raise MemoryError("no memory for the merged state")


cdef inline bint plain(object array, int axes) noexcept:
    """Is it a C-contiguous, aligned, native float32 ndarray of that many axes?"""
    return (
        cnp.PyArray_CheckExact(array)
        and cnp.PyArray_NDIM(<cnp.ndarray> array) == axes
        and cnp.PyArray_TYPE(<cnp.ndarray> array) == cnp.NPY_FLOAT32
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> array)
    )


def attend_plain(query, keys, values, int heads, double scale, bint return_lse,
                 bint return_weights, int threads):
    """Attend from one float32 query over float32 keys, without any option."""
    cdef Call call
    cdef Segment segment
    cdef cnp.npy_intp shape[2]
    cdef cnp.ndarray out, lse, weights
    cdef Py_ssize_t n, dim, dim_v
    if not (plain(query, 1) and plain(keys, 2) and plain(values, 2)):
        return None
    n, dim, dim_v = length(keys, 0), length(keys, 1), length(values, 1)
    if (n < 1 or length(query, 0) != dim or length(values, 0) != n
            or dim % heads != 0 or dim_v % heads != 0):
        return None

    start_call(&call, _dispatch.tiles(), RV_F32, heads, heads)
    memset(&segment, 0, sizeof(Segment))
    call.dim, call.dim_v = dim // heads, dim_v // heads
    call.q_head = call.k_head = call.dim * sizeof(float)
    call.v_head = call.out_head = call.dim_v * sizeof(float)
    call.k_row, call.v_row = dim * sizeof(float), dim_v * sizeof(float)
    call.lse_head = sizeof(float)
    call.scale = scale
    segment.lq, segment.lk = 1, n
    segment.q, segment.k, segment.v = data(query), data(keys), data(values)
    shape[0] = dim_v
    out = cnp.PyArray_EMPTY(1, shape, cnp.NPY_FLOAT32, 0)
    segment.out = <char *> data(out)
    if return_lse:
        shape[0] = heads
        lse = cnp.PyArray_EMPTY(1, shape, cnp.NPY_FLOAT32, 0)
        segment.lse = <char *> data(lse)
    if return_weights:
        shape[0], shape[1] = heads, n
        if heads == 1:
            weights = cnp.PyArray_EMPTY(1, shape + 1, cnp.NPY_FLOAT32, 0)
        else:
            weights = cnp.PyArray_EMPTY(2, shape, cnp.NPY_FLOAT32, 0)
        segment.weights = <char *> data(weights)

    if n * (dim + dim_v) <= BRIEF_WORK:
        run(&call, &segment, 1, 1)
    else:
        with nogil:
            run(&call, &segment, 1, threads)
    if not (return_lse or return_weights):
        return out
    result = [out]
    if return_lse:
        result.append(lse[0] if heads == 1 else lse)
    if return_weights:
        result.append(weights)
    return tuple(result)
