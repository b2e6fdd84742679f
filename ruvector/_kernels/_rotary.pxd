"""Rotary positions beside the drivers of the softmax engine: rows are turned as they are read.

A tile of keys or a row of queries at a time goes through scratch of a thread; decoding turns
keys on the way into the dot product. Nothing the size of the keys is made. The mathematics is
in simd/rotary.inc.h.
"""

from libc.stdint cimport int64_t

from ruvector._kernels._problem cimport Call, Segment


cdef inline void turn_query(const Call *call, const Segment *segment, Py_ssize_t head,
                            Py_ssize_t i, char *out) noexcept nogil:
    # out[dim] reals
    call.rotary.tiles.rotate(
        segment.q + head * call.q_head + i * call.q_row, 0, 0, 1, 1, call.dim,
        segment.q_positions + i, call.rotary.table, call.rotary.neighbours, out)


cdef inline void turn_keys(const Call *call, const Segment *segment, int kv_head,
                           int64_t first_key, int nk, char *out) noexcept nogil:
    # out[nk][dim] reals
    call.rotary.tiles.rotate(
        segment.k + kv_head * call.k_head + first_key * call.k_row,
        call.k_row // call.tiles.item, 0, nk, 1, call.dim, segment.k_positions + first_key,
        call.rotary.table, call.rotary.neighbours, out)


cdef inline void score_turned(const Call *call, const Segment *segment, int first_head,
                              int heads, int64_t first_key, int nk, const char *q,
                              Py_ssize_t ldq, char *s, Py_ssize_t lds) noexcept nogil:
    # s[heads * rows of a head][lds], as rv_decode_tiles.scores
    call.rotary.tiles.scores(
        q, ldq, segment.k + first_head * call.k_head + first_key * call.k_row,
        call.k_row // call.tiles.item, call.k_head // call.tiles.item, nk, heads,
        call.group * <int> segment.lq, call.dim, segment.k_positions + first_key,
        call.rotary.table, call.rotary.neighbours, s, lds)
