"""The engine of linear attention: one call as its drivers see it."""

from ruvector._kernels._features cimport Map, Rows, Sums


cdef struct Call:
    # All sequences of one call. Strides are in bytes; sums is null where the caller has none.
    Map map
    Rows first
    Sums sums
    Py_ssize_t batch, heads
    Py_ssize_t q_batch, q_head, k_batch, k_head, v_batch, v_head, bias_batch
    Py_ssize_t out_batch, out_head, lse_batch, lse_head
    bint absorbs, reads, causal


cdef Sums sums_of(const Map *map, const Sums *first, Py_ssize_t index) noexcept nogil
cdef int run(Call *call, int threads) except -1 nogil
