"""Prefill: many queries, which lie across the SIMD lanes."""

from libc.stdint cimport int64_t

from ruvector._kernels._ball cimport BallScratch, BallTile
from ruvector._kernels._problem cimport Call, Segment


cdef struct Tile:
    # One tile of `rows` query rows in `cols` lanes, and what they see together: nothing
    # outside [lower, upper) and [0, sink), all of [inner_lower, inner_upper) and
    # [0, inner_sink). The pointers are into the block's scratch.
    int rows, cols
    int64_t lower, upper, sink, inner_lower, inner_upper, inner_sink
    int64_t *row_lower
    int64_t *row_upper
    int64_t *row_sink
    char *qt
    char *o
    char *m
    char *l
    BallTile ball


cdef struct Scratch:
    # One thread's buffers; s and raw are [key_tile][cols] reals, lanes three rows of reals.
    Tile *tiles
    char *s
    char *raw
    char *queries
    char *keys
    char *values
    char *lanes
    const void **rows
    void **outs
    void **lses
    BallScratch ball


cdef Py_ssize_t scratch_bytes(const Call *call) noexcept nogil
cdef void lay_out(const Call *call, char *memory, Scratch *scratch) noexcept nogil
cdef int load_queries(const Call *call, const Segment *segment, int kv_head, Py_ssize_t start,
                      Scratch *scratch) noexcept nogil
cdef void load_keys(const Call *call, const Segment *segment, int kv_head, int64_t first_key,
                    int nk, char *out) noexcept nogil
cdef bint score_tile(const Call *call, const Segment *segment, int kv_head, Py_ssize_t start,
                     const Tile *tile, int64_t first_key, int nk, const char *keys,
                     Py_ssize_t ldk, const Scratch *scratch) noexcept nogil
cdef void attend_block(const Call *call, const Segment *segment, int kv_head,
                       Py_ssize_t start, Scratch *scratch) noexcept nogil
