"""Rotary positions beside the drivers of the softmax engine: rows are turned as they are read.

What is turned is a tile of keys or a row of queries at a time, into scratch of a thread;
nothing the size of the keys is made. The mathematics is in simd/rotary.inc.h.
"""

from libc.stdint cimport int64_t

from ruvector._kernels._problem cimport Call, Segment


cdef inline void turn_keys(const Call *call, const Segment *segment, int first_head, int heads,
                           int64_t first_key, int nk, char *out) noexcept nogil:
    # out[nk][heads][dim] reals
    call.rotary.rotate(
        segment.k + first_head * call.k_head + first_key * call.k_row,
        call.k_row // call.tiles.item, call.k_head // call.tiles.item, nk, heads, call.dim,
        segment.k_positions + first_key, call.rotary.table, call.rotary.neighbours, out)


cdef inline void turn_query(const Call *call, const Segment *segment, Py_ssize_t head,
                            Py_ssize_t i, char *out) noexcept nogil:
    # out[dim] reals
    call.rotary.rotate(
        segment.q + head * call.q_head + i * call.q_row, 0, 0, 1, 1, call.dim,
        segment.q_positions + i, call.rotary.table, call.rotary.neighbours, out)
