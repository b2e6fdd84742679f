"""Decoding: few queries, bound by the memory that keys and values take."""

from libc.stdint cimport int64_t

from ruvector._kernels._problem cimport Call, Segment


cdef Py_ssize_t chunk_keys(const Call *call, int heads) noexcept nogil
cdef Py_ssize_t state_bytes(const Call *call, Py_ssize_t rows) noexcept nogil
cdef Py_ssize_t scratch_bytes(const Call *call, Py_ssize_t rows) noexcept nogil
cdef void attend_chunk(const Call *call, const Segment *segment, int first_head, int heads,
                       int64_t begin, int64_t end, char *state, char *memory) noexcept nogil
cdef void finish_rows(const Call *call, const Segment *segment, int first_head, int heads,
                      char *states, Py_ssize_t chunks) noexcept nogil
