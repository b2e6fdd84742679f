"""The streaming softmax engine over any number of sequences."""

from ruvector._kernels._problem cimport Call, Segment


cdef enum:
    NO_MEMORY = -1
    INTERRUPTED = -2  # a signal handler raised; its exception is set


cdef int compute(const Call *call, const Segment *segments, Py_ssize_t count, int threads,
                 bint heed_signals) noexcept nogil
cdef int run(const Call *call, const Segment *segments, Py_ssize_t count,
             int threads) except -1 nogil
