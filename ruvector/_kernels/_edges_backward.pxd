"""The gradient of attention along edges over a whole graph."""

from ruvector._kernels._edge_gradients cimport Gradient


cdef int run_gradient(const Gradient *d, int threads) except -1 nogil
