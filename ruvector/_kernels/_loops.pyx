"""Features of edges from nodes to themselves: means of a row's others, and their gradient.

One pass over the features each, limited by memory. A row lists its edges but those to itself
as they came, then the new one.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset


cdef int fill_loops(const Loops *p) except -1 nogil:
    """Copy the features of edges that stay, and put the mean of each row behind them."""
    cdef double *sums = <double *> calloc(p.width + 1, sizeof(double))
    cdef Py_ssize_t i, d, count
    cdef int64_t e
    cdef char *out = p.out
    cdef const char *x
    if sums == NULL:
        with gil:
            raise MemoryError("no memory for a row of sums")
    for i in range(p.receivers):
        count = 0
        memset(sums, 0, p.width * sizeof(double))
        for e in range(p.indptr[i], p.indptr[i + 1]):
            if p.indices[e] == i:
                continue
            x = p.x + e * p.x_row
            memcpy(out, x, p.width * p.real)
            out += p.out_row
            count += 1
            if p.real == sizeof(double):
                for d in range(p.width):
                    sums[d] += (<const double *> x)[d]
            else:
                for d in range(p.width):
                    sums[d] += (<const float *> x)[d]
        if i >= p.nodes:
            continue
        count = max(count, 1)
        for d in range(p.width):
            if p.real == sizeof(double):
                (<double *> out)[d] = sums[d] / count
            else:
                (<float *> out)[d] = <float> (sums[d] / count)
        out += p.out_row
    free(sums)
    return 0


cdef int fold_loops(const Loops *p) except -1 nogil:
    """Give every edge that stayed its gradient and its share of that of the mean."""
    cdef Py_ssize_t i, d, count
    cdef int64_t e
    cdef const char *x = p.x
    cdef const char *mean
    cdef char *out
    cdef double share
    for i in range(p.receivers):
        count = 0
        for e in range(p.indptr[i], p.indptr[i + 1]):
            count += p.indices[e] != i
        mean = x + count * p.x_row
        share = 1.0 / max(count, 1) if i < p.nodes else 0.0
        for e in range(p.indptr[i], p.indptr[i + 1]):
            out = p.out + e * p.out_row
            if p.indices[e] == i:
                memset(out, 0, p.width * p.real)
                continue
            memcpy(out, x, p.width * p.real)
            x += p.x_row
            if share == 0:
                continue
            if p.real == sizeof(double):
                for d in range(p.width):
                    (<double *> out)[d] += share * (<const double *> mean)[d]
            else:
                for d in range(p.width):
                    (<float *> out)[d] += <float> share * (<const float *> mean)[d]
        if i < p.nodes:
            x += p.x_row
    return 0
