"""The second pass of the gradient."""

from libc.stdint cimport int64_t

from ruvector._kernels._gradients cimport Gradients, GradientSegment
from ruvector._kernels._problem cimport Call, Segment


cdef void key_block(const Call *call, const Segment *segment, const Gradients *g,
                    const GradientSegment *want, int kv_head, int64_t first_key,
                    char *memory) noexcept nogil
