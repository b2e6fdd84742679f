"""The gradient of softmax attention: the compiled kernel's Python face.

Arguments and results are those of the NumPy twin, fallback/softmax_backward.py, whose
docstring describes them. Here arrays become pointers and strides; _backward.pyx computes,
without the GIL.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ruvector._kernels cimport _dispatch
from ruvector._kernels._backward cimport run_backward
from ruvector._kernels._calls cimport (
    ball_segments, batch_segments, cut_segments, describe, describe_ball,
)
from ruvector._kernels._dispatch cimport RV_BF16, RV_F16, RV_F32, RV_F64
from ruvector._kernels._gradients cimport Gradients, GradientSegment
from ruvector._kernels._numpy cimport data, length, stride
from ruvector._kernels._problem cimport Ball, Call, Segment

import numpy as np

from ruvector._kernels.fallback import _ball_backward, _ball_sums, _storage

cnp.import_array()


cdef inline Py_ssize_t spread(cnp.ndarray array, int axis) noexcept:
    """The stride of an axis, 0 where it has one entry that stands for all."""
    return 0 if length(array, axis) == 1 else stride(array, axis)


cdef int storage_of(const Call *call) noexcept:
    """Index of the storage type that a call's tiles were chosen for."""
    cdef const _dispatch.rv_table *table = _dispatch.tiles()
    for dtype in (RV_F32, RV_F64, RV_F16, RV_BF16):
        if table.softmax[<int> dtype] == call.tiles:
            return dtype
    return -1


cdef int place(GradientSegment *want, Py_ssize_t b, cnp.ndarray grad_out, grad_lse, grad_query,
               grad_key, grad_value, grad_bias) except -1:
    """Point one batch entry at its part of every array."""
    want.out = data(grad_out) + b * stride(grad_out, 0)
    if grad_lse is not None:
        want.lse = data(grad_lse) + b * stride(grad_lse, 0)
    if grad_query is not None:
        want.q = data(grad_query) + b * stride(grad_query, 0)
    if grad_key is not None:
        want.k = data(grad_key) + b * stride(grad_key, 0)
    if grad_value is not None:
        want.v = data(grad_value) + b * stride(grad_value, 0)
    if grad_bias is not None:
        want.bias = data(grad_bias) + b * spread(grad_bias, 0)
    return 0


cdef int fill_strides(Gradients *g, cnp.ndarray grad_out, grad_lse, grad_query, grad_key,
                      grad_value, grad_bias) except -1:
    g.out_head, g.out_row = stride(grad_out, 1), stride(grad_out, 2)
    if grad_lse is not None:
        g.lse_head, g.lse_row = stride(grad_lse, 1), stride(grad_lse, 2)
    if grad_query is not None:
        g.q_head, g.q_row = stride(grad_query, 1), stride(grad_query, 2)
    if grad_key is not None:
        g.k_head, g.k_row = stride(grad_key, 1), stride(grad_key, 2)
    if grad_value is not None:
        g.v_head, g.v_row = stride(grad_value, 1), stride(grad_value, 2)
    if grad_bias is not None:
        g.bias_head, g.bias_row, g.bias_key = (
            spread(grad_bias, 1), spread(grad_bias, 2), spread(grad_bias, 3))
    return 0


cdef int cut_wanted(const Gradients *g, GradientSegment *parts, const GradientSegment *whole,
                    spec, Py_ssize_t count) except -1:
    """The sequences of a packed problem as parts of `whole`."""
    cdef const int64_t *ends_q = <const int64_t *> data(spec.cu_seqlens_q)
    cdef const int64_t *ends_k = <const int64_t *> data(spec.cu_seqlens_k)
    cdef GradientSegment *part
    cdef Py_ssize_t s
    for s in range(count):
        part = parts + s
        part[0] = whole[0]
        part.out += ends_q[s] * g.out_row
        if part.lse != NULL:
            part.lse += ends_q[s] * g.lse_row
        if part.q != NULL:
            part.q += ends_q[s] * g.q_row
        if part.k != NULL:
            part.k += ends_k[s] * g.k_row
        if part.v != NULL:
            part.v += ends_k[s] * g.v_row
        if part.bias != NULL:
            part.bias += ends_q[s] * g.bias_row + ends_k[s] * g.bias_key
    return 0


cdef int share_rows(const Call *call, const Segment *segments, GradientSegment *wanted,
                    Py_ssize_t count, cnp.ndarray rows, bint slopes) except -1:
    """Give every segment its rows of D, L and the sums of the slopes: `rows` (3, total)."""
    cdef char *at = data(rows)
    cdef Py_ssize_t s, size
    for s in range(count):
        size = call.heads * segments[s].lq * call.tiles.real
        wanted[s].delta = at
        wanted[s].lse2 = at + stride(rows, 0)
        wanted[s].slopes = at + 2 * stride(rows, 0) if slopes else NULL
        at += size
    return 0


def attend_backward(cnp.ndarray query not None, cnp.ndarray key not None,
                    cnp.ndarray value not None, cnp.ndarray out not None,
                    cnp.ndarray lse not None, cnp.ndarray grad_out not None, grad_lse,
                    grad_query, grad_key, grad_value, grad_bias, grad_slopes, grad_sinks, spec,
                    int threads):
    """Compute the gradients of the attention state (o, L)."""
    cdef Call call
    cdef Gradients g
    cdef Segment *segments
    cdef GradientSegment *wanted
    cdef Py_ssize_t batch = length(query, 0), count = batch, s, total
    cdef bint ragged = spec.cu_seqlens_q is not None
    describe(&call, query, key, spec)
    memset(&g, 0, sizeof(Gradients))
    dtype = storage_of(&call)
    call.tiles = _dispatch.tiles().wide[<int> dtype]
    g.tiles = _dispatch.tiles().backward[<int> dtype]
    call.dim_v = length(value, 3)
    call.v_head, call.v_row = stride(value, 1), stride(value, 2)
    call.out_head, call.out_row = stride(out, 1), stride(out, 2)
    call.lse_head, call.lse_row = stride(lse, 1), stride(lse, 2)
    fill_strides(&g, grad_out, grad_lse, grad_query, grad_key, grad_value, grad_bias)

    if ragged:
        count = length(spec.cu_seqlens_q, 0) - 1
    total = batch * call.heads * length(query, 2)
    rows = np.zeros((3, total), np.float64 if call.tiles.real == 8 else np.float32)
    segments = batch_segments(batch + count, query, key, spec)
    wanted = <GradientSegment *> malloc(max(batch + count, 1) * sizeof(GradientSegment))
    try:
        if wanted == NULL:
            raise MemoryError("no memory for the attention engine's segments")
        memset(wanted, 0, (batch + count) * sizeof(GradientSegment))
        for s in range(batch):
            segments[s].v = data(value) + s * stride(value, 0)
            segments[s].out = data(out) + s * stride(out, 0)
            segments[s].lse = data(lse) + s * stride(lse, 0)
            place(wanted + s, s, grad_out, grad_lse, grad_query, grad_key, grad_value,
                  grad_bias)
        if ragged:
            cut_segments(&call, segments + batch, segments, spec, count)
            cut_wanted(&g, wanted + batch, wanted, spec, count)
        else:
            for s in range(count):
                segments[batch + s] = segments[s]
                wanted[batch + s] = wanted[s]
        share_rows(&call, segments + batch, wanted + batch, count, rows,
                   grad_slopes is not None)
        run_segments(&call, segments + batch, &g, wanted + batch, count, threads, ragged)
        if grad_slopes is not None:
            grad_slopes[...] = -by_head(rows[2], segments + batch, count, call.heads)
        if grad_sinks is not None:
            with np.errstate(all="ignore"):
                share = np.exp(np.minimum(spec.sink_logits[np.newaxis, :, np.newaxis] - lse, 0))
                deltas = np.einsum("bhid,bhid->bhi", floats(grad_out, rows), floats(out, rows))
                if grad_lse is not None:
                    deltas = deltas - grad_lse
                grad_sinks[...] = -(share * deltas).sum(axis=(0, 2))
    finally:
        free(wanted)
        free(segments)


def attend_ball_backward(query, key, value, cnp.ndarray ball_query not None,
                         cnp.ndarray ball_key not None, ball_value, state,
                         cnp.ndarray lse not None, grad_state, grad_lse, grad_weights,
                         grad_query, grad_key, grad_value, cnp.ndarray grad_ball_query not None,
                         cnp.ndarray grad_ball_key not None, grad_ball_value, grad_bias,
                         grad_parameters, spec, ball, int threads):
    """Compute the gradients of the attention state with a part in a Poincare ball."""
    if grad_weights is not None or (spec.scale == 0 and grad_parameters is not None):
        # The means that weights alone belong to are searched for in NumPy, too. Without a
        # scale the sums that its gradient is read from are 0.
        _ball_backward.attend_ball_backward(
            query, key, value, ball_query, ball_key, ball_value, state, lse, grad_state,
            grad_lse, grad_weights, grad_query, grad_key, grad_value, grad_ball_query,
            grad_ball_key, grad_ball_value, grad_bias, grad_parameters, spec, ball, threads)
        return
    if query is None:
        query, key = ball_query[..., :0], ball_key[..., :0]
    given = tuple(reals(x) for x in (query, key, ball_query, ball_key))
    with np.errstate(all="ignore"):
        sums = _ball_sums.CompiledSums(
            given, value, ball_value, state, lse, grad_state, grad_lse, ball,
            grad_parameters is not None)
        run_ball(given, sums, grad_bias, spec, ball, threads)
        sums.store(
            (query, key, value, ball_query, ball_key, ball_value),
            (grad_query, grad_key, grad_value, grad_ball_query, grad_ball_key,
             grad_ball_value),
            grad_parameters, spec, ball)


cdef reals(x):
    """The array in its compute type, with contiguous rows."""
    wide = _storage.widen(x)
    return wide if wide is not x or wide.strides[3] == wide.itemsize else (
        np.ascontiguousarray(wide))


cdef int run_ball(given, sums, grad_bias, spec, ball, int threads) except -1:
    """Run both passes over arrays of reals."""
    cdef cnp.ndarray query = given[0], key = given[1], points = given[2], others = given[3]
    cdef cnp.ndarray rows = sums.rows, state = sums.state, lse = sums.lse
    cdef Call call
    cdef Ball part
    cdef Gradients g
    cdef Segment *segments
    cdef GradientSegment *wanted
    cdef Py_ssize_t batch = length(points, 0), b
    describe_ball(&call, &part, query, key, points, others, spec, ball)
    if batch == 0 or call.heads == 0 or length(points, 2) == 0:
        return 0
    memset(&g, 0, sizeof(Gradients))
    dtype = RV_F64 if call.tiles.real == 8 else RV_F32
    g.tiles = _dispatch.tiles().backward[<int> dtype]
    call.tiles = _dispatch.tiles().wide[<int> dtype]
    call.dim_v = length(rows, 3)
    call.v_head, call.v_row = stride(rows, 1), stride(rows, 2)
    call.out_head, call.out_row = stride(state, 1), stride(state, 2)
    call.lse_head, call.lse_row = stride(lse, 1), stride(lse, 2)
    flat = call.dim > 0
    fill_strides(&g, sums.grad_state, None, sums.of_query if flat else None,
                 sums.of_key if flat else None, sums.of_rows, grad_bias)
    scratch = np.empty((batch, call.heads, length(points, 2)), lse.dtype)
    segments = ball_segments(batch, query, key, points, others, spec)
    wanted = <GradientSegment *> malloc(batch * sizeof(GradientSegment))
    try:
        if wanted == NULL:
            raise MemoryError("no memory for the attention engine's segments")
        memset(wanted, 0, batch * sizeof(GradientSegment))
        for b in range(batch):
            segments[b].v = data(rows) + b * stride(rows, 0)
            segments[b].out = data(state) + b * stride(state, 0)
            segments[b].lse = data(lse) + b * stride(lse, 0)
            place(wanted + b, b, sums.grad_state, None, sums.of_query if flat else None,
                  sums.of_key if flat else None, sums.of_rows, grad_bias)
            wanted[b].delta = entry(sums.delta, b)
            wanted[b].lse2 = entry(scratch, b)
            wanted[b].ball.q = entry(sums.by_query.others, b)
            wanted[b].ball.q_mass = entry(sums.by_query.mass, b)
            wanted[b].ball.q_pairs = entry(sums.by_query.pairs, b)
            wanted[b].ball.k = entry(sums.by_key.others, b)
            wanted[b].ball.k_mass = entry(sums.by_key.mass, b)
            wanted[b].ball.k_pairs = entry(sums.by_key.pairs, b)
            if sums.distances is not None:
                wanted[b].ball.distances = entry(sums.distances, b)
        with nogil:
            run_backward(&call, segments, &g, wanted, batch, threads)
    finally:
        free(wanted)
        free(segments)
    return 0


cdef inline char *entry(cnp.ndarray array, Py_ssize_t b) noexcept:
    return data(array) + b * stride(array, 0)


cdef by_head(sums, const Segment *segments, Py_ssize_t count, int heads):
    """Add the rows of every head, segment by segment."""
    cdef Py_ssize_t s, at = 0, size
    result = np.zeros(heads, sums.dtype)
    for s in range(count):
        size = heads * segments[s].lq
        result += sums[at:at + size].reshape(heads, -1).sum(axis=1)
        at += size
    return result


cdef floats(array, rows):
    """The array in the compute type; uint16 holds the bits of bfloat16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(rows.dtype, copy=False)


cdef int run_segments(Call *call, const Segment *segments, const Gradients *g,
                      const GradientSegment *wanted, Py_ssize_t count, int threads,
                      bint ragged) except -1:
    """Run all segments together, or one by one where packed rows have their own positions."""
    cdef const int64_t *positions = call.positions
    cdef Py_ssize_t s, row = 0
    if count == 0:
        return 0
    if positions == NULL or not ragged:
        with nogil:
            run_backward(call, segments, g, wanted, count, threads)
        return 0
    for s in range(count):
        call.positions = positions + row
        row += segments[s].lq
        with nogil:
            run_backward(call, segments + s, g, wanted + s, 1, threads)
    return 0
