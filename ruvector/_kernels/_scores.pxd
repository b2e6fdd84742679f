"""What is read off the scores themselves: the weights, and the k largest of them."""

from ruvector._kernels._problem cimport Call, Segment


cdef struct Ranking:
    # Where the k best keys of each row go; strides in bytes, rows contiguous.
    Py_ssize_t k, index_head, index_row, weight_head, weight_row
    char *indices
    char *weights


cdef int run_weights(const Call *call, const Segment *segments, Py_ssize_t count,
                     int threads) except -1 nogil
cdef int run_top_k(const Call *call, const Segment *segments, const Ranking *rankings,
                   Py_ssize_t count, int threads) except -1 nogil
