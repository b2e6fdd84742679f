"""The gradient of the streaming softmax over any number of sequences."""

from ruvector._kernels._gradients cimport Gradients, GradientSegment
from ruvector._kernels._problem cimport Call, Segment


cdef int run_backward(const Call *call, const Segment *segments, const Gradients *gradients,
                      const GradientSegment *wanted, Py_ssize_t count,
                      int threads) except -1 nogil
