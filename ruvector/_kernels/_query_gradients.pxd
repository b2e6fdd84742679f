"""The first pass of the gradient."""

from ruvector._kernels._gradients cimport Gradients, GradientSegment
from ruvector._kernels._problem cimport Call, Segment


cdef void query_block(const Call *call, const Segment *segment, const Gradients *g,
                      const GradientSegment *want, int kv_head, Py_ssize_t start, char *memory,
                      bint into_bias) noexcept nogil
