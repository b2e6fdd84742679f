"""How arrays and a specification become the engine's calls and segments.

What the faces of softmax attention share: softmax.pyx, softmax_backward.pyx and ragged.pyx.
"""

cimport numpy as cnp
from libc.math cimport sqrt
from libc.stdint cimport int64_t
from libc.stdlib cimport malloc
from libc.string cimport memset

from ruvector._kernels cimport _dispatch
from ruvector._kernels._dispatch cimport RV_F32, RV_F64
from ruvector._kernels._numpy cimport data, dtype_of, length, stored_type, stride
from ruvector._kernels._problem cimport Ball, Call, Rotary, Segment, start_call

cnp.import_array()


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
    cdef int own = dtype_of(query), other = stored_type(key)
    cdef object option = spec.key_scales
    if option is not None:
        call.k_scale_head = stride(option, 1)
    option = spec.value_scales
    if option is not None:
        call.v_scale_head = stride(option, 1)
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
