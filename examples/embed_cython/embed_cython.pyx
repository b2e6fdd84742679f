# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A memory in shards: attend to every shard in a thread of our own, then merge the states.

    o_s, L_s = attention(q, K_s, V_s)        L = ln sum_s exp(L_s)

Both loops run without the GIL, in this module's own prange; ruvector gets one thread each.
"""

from cython.parallel cimport prange

from ruvector._kernels cimport capi

import numpy as np


cdef int attend(const float[:, :, ::1] query, const float[:, :, ::1] key,
                const float[:, :, ::1] value, Py_ssize_t first, Py_ssize_t last,
                float *out, float *lse) noexcept nogil:
    """The state of all queries over the keys [first, last)."""
    cdef capi.ruvector_attention_args args
    cdef Py_ssize_t dim = query.shape[2], width = value.shape[2]
    cdef int status
    capi.attention_init(&args)
    args.dtype = capi.RUVECTOR_F32
    args.batch = 1
    args.heads = query.shape[0]
    args.kv_heads = key.shape[0]
    args.queries = query.shape[1]
    args.keys = key.shape[1]
    args.dim = dim
    args.value_dim = width
    status = capi.attention_layout(&args, capi.RUVECTOR_HEADS_FIRST)
    if status != capi.RUVECTOR_OK:
        return status
    # The strides are those of the whole memory; a shard begins further down in it.
    args.keys = last - first
    args.query = &query[0, 0, 0]
    args.key = &key[0, 0, 0] + first * dim
    args.value = &value[0, 0, 0] + first * width
    args.out = out
    args.lse = lse
    return capi.attention(&args)


cdef int merge(const float *outputs, const float *lses, Py_ssize_t shards, Py_ssize_t states,
               Py_ssize_t first, Py_ssize_t rows, Py_ssize_t width, float *out,
               float *lse) noexcept nogil:
    """Merge the rows [first, first + rows) of outputs (shards, states, width)."""
    cdef capi.ruvector_merge_args args
    capi.merge_init(&args)
    args.dtype = capi.RUVECTOR_F32
    args.parts = shards
    args.rows = rows
    args.dim = width
    args.outputs = outputs + first * width
    args.outputs_strides[0] = states * width * sizeof(float)
    args.outputs_strides[1] = width * sizeof(float)
    args.lses = lses + first
    args.lses_strides[0] = states * sizeof(float)
    args.lses_strides[1] = sizeof(float)
    args.out = out + first * width
    args.out_stride = width * sizeof(float)
    args.lse = lse + first
    args.lse_stride = sizeof(float)
    return capi.merge(&args)


def attend_shards(const float[:, :, ::1] query, const float[:, :, ::1] key,
                  const float[:, :, ::1] value, int shards, int threads):
    """Attend from query (H, Lq, D) to key (Hkv, Lk, D) and value (Hkv, Lk, Dv) in shards.

    Returns the output (H, Lq, Dv) and the log-sum-exp (H, Lq).
    """
    cdef Py_ssize_t heads = query.shape[0], queries = query.shape[1], keys = key.shape[1]
    cdef Py_ssize_t width = value.shape[2], states = heads * queries, s, h
    if not (heads and queries and keys and query.shape[2] and width):
        raise ValueError("no axis may be empty")
    if (key.shape[2] != query.shape[2] or value.shape[0] != key.shape[0]
            or value.shape[1] != keys):
        raise ValueError("query, key and value do not fit each other")
    if shards < 1 or threads < 1:
        raise ValueError("shards and threads must be at least 1")
    parts = np.empty((shards, states, width), np.float32)
    part_lses = np.empty((shards, states), np.float32)
    result = np.empty((heads, queries, width), np.float32)
    result_lse = np.empty((heads, queries), np.float32)
    statuses = np.zeros(shards + heads, np.intc)
    cdef float[:, :, ::1] outputs = parts
    cdef float[:, ::1] lses = part_lses
    cdef float[:, :, ::1] out = result
    cdef float[:, ::1] lse = result_lse
    cdef int[::1] status = statuses
    for s in prange(shards, nogil=True, num_threads=threads, schedule="dynamic"):
        status[s] = attend(query, key, value, s * keys // shards, (s + 1) * keys // shards,
                           &outputs[s, 0, 0], &lses[s, 0])
    for h in prange(heads, nogil=True, num_threads=threads):
        status[shards + h] = merge(&outputs[0, 0, 0], &lses[0, 0], shards, states,
                                   h * queries, queries, width, &out[0, 0, 0], &lse[0, 0])
    for code in statuses:
        if code != capi.RUVECTOR_OK:
            raise ValueError(capi.message(code).decode())
    return result, result_lse
