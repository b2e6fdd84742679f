"""The streaming softmax engine over any number of sequences."""

from ruvector._kernels._problem cimport Call, Segment


cdef int run(const Call *call, const Segment *segments, Py_ssize_t count,
             int threads) except -1 nogil
