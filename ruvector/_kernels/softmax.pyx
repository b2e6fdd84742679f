"""Softmax attention as a stream of key tiles: the compiled engine's Python face.

Arguments and results are those of the NumPy twin, fallback/softmax.py, whose docstrings
describe them. Here arrays become pointers and strides, and nothing is computed: the engine
does that without the GIL.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ruvector._kernels cimport _dispatch
from ruvector._kernels._calls cimport (
    Stored, ball_segments, batch_segments, cut_segments, describe, describe_ball,
    describe_rotary, describe_stored,
)
from ruvector._kernels._dispatch cimport RV_F32
from ruvector._kernels._engine cimport run
from ruvector._kernels._merge cimport States, merge_states
from ruvector._kernels._numpy cimport data, dtype_of, is_plain, length, stride
from ruvector._kernels._problem cimport Ball, Call, Rotary, Segment, start_call
from ruvector._kernels._scores cimport Ranking, run_top_k, run_weights

cnp.import_array()

# Multiply-adds of one plain query below which handing back the GIL costs more than it gives.
cdef Py_ssize_t BRIEF_WORK = 1 << 16


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
            segments[b].out = data(out) + b * stride(out, 0)
            if lse is not None:
                segments[b].lse = data(lse) + b * stride(lse, 0)
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
            segments[b].ball_out = data(ball_out) + b * stride(ball_out, 0)
            if value is not None:
                segments[b].v = data(value) + b * stride(value, 0)
                segments[b].out = data(out) + b * stride(out, 0)
            if lse is not None:
                segments[b].lse = data(lse) + b * stride(lse, 0)
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
            segments[b].out = data(out) + b * stride(out, 0)
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
            segments[b].out = data(out) + b * stride(out, 0)
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
                stride(weights, 2), data(indices) + b * stride(indices, 0),
                data(weights) + b * stride(weights, 0))
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
        data(out), data(lse), stride(out, 0), stride(lse, 0))
    cdef const _dispatch.rv_decode_tiles *tiles = _dispatch.tiles().decode[dtype_of(outputs)]
    cdef int failure
    with nogil:
        failure = merge_states(tiles, &states)
    if failure:
        raise MemoryError("no memory for the merged state")


def attend_plain(query, keys, values, int heads, double scale, bint return_lse,
                 bint return_weights, int threads):
    """Attend from one float32 query over float32 keys, without any option."""
    cdef Call call
    cdef Segment segment
    cdef cnp.npy_intp shape[2]
    cdef cnp.ndarray out, lse, weights
    cdef Py_ssize_t n, dim, dim_v
    if not (is_plain(query, 1) and is_plain(keys, 2) and is_plain(values, 2)):
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
    segment.out = data(out)
    if return_lse:
        shape[0] = heads
        lse = cnp.PyArray_EMPTY(1, shape, cnp.NPY_FLOAT32, 0)
        segment.lse = data(lse)
    if return_weights:
        shape[0], shape[1] = heads, n
        if heads == 1:
            weights = cnp.PyArray_EMPTY(1, shape + 1, cnp.NPY_FLOAT32, 0)
        else:
            weights = cnp.PyArray_EMPTY(2, shape, cnp.NPY_FLOAT32, 0)
        segment.weights = data(weights)

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
