"""Orders of edges and distances along them."""

from libc.stdint cimport int64_t


cdef void group_positions(const void *keys, bint wide, Py_ssize_t count, int64_t *indptr,
                          Py_ssize_t groups, int64_t *order) noexcept nogil
cdef int measure_hops(const int64_t *indptr, const void *indices, bint wide,
                      const int64_t *sources, Py_ssize_t num_sources, int64_t max_hops,
                      int64_t *out, Py_ssize_t nodes) except -1 nogil
