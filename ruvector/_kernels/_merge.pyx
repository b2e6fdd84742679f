"""The merge of attention states of disjoint key sets.

    L = ln sum_p exp(L_p)        o = sum_p exp(L_p - L) o_p

in index order, shares and sums in double. A part with L_p = -inf holds nothing and is not
read; all parts like that give (0, -inf). Reads and writes every state once.
"""

from libc.math cimport INFINITY, exp, log
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ruvector._kernels._dispatch cimport rv_decode_tiles


cdef inline double get(const char *at, bint wide) noexcept nogil:
    return (<const double *> at)[0] if wide else (<const float *> at)[0]


cdef inline void put(char *at, bint wide, double x) noexcept nogil:
    if wide:
        (<double *> at)[0] = x
    else:
        (<float *> at)[0] = <float> x


cdef double weighted_sum(const rv_decode_tiles *t, const States *s, Py_ssize_t r, double top,
                         double *total, char *row) noexcept nogil:
    """total = sum_p exp(L_p - top) o_p; returns the sum of the shares."""
    cdef Py_ssize_t p, d
    cdef double share, whole = 0
    cdef bint wide = t.real == sizeof(double)
    memset(total, 0, s.dim_v * sizeof(double))
    for p in range(s.parts):
        share = get(s.lses + p * s.lse_part + r * s.lse_row, wide)
        if share == -INFINITY:
            continue
        share = exp(share - top)
        whole += share
        t.load_query(s.outputs + p * s.output_part + r * s.output_row, s.dim_v, 1.0, row)
        if wide:
            for d in range(s.dim_v):
                total[d] += share * (<const double *> row)[d]
        else:
            for d in range(s.dim_v):
                total[d] += share * (<const float *> row)[d]
    return whole


cdef int merge_states(const rv_decode_tiles *t, const States *s) noexcept nogil:
    """Merge the states of every row; returns 0, or -1 where there is no memory for it."""
    cdef Py_ssize_t width = (s.dim_v + t.lanes - 1) // t.lanes * t.lanes, p, r, d
    cdef bint wide = t.real == sizeof(double)
    cdef double *total = <double *> malloc((2 * width + 2) * sizeof(double))
    cdef char *row
    cdef char *one
    cdef double top, whole
    if total == NULL:
        return -1
    row = <char *> (total + width)
    one = <char *> (total + 2 * width)
    put(one, wide, 1.0)
    for r in range(s.rows):
        top = -INFINITY
        for p in range(s.parts):
            top = max(top, get(s.lses + p * s.lse_part + r * s.lse_row, wide))
        whole = weighted_sum(t, s, r, top, total, row)
        for d in range(s.dim_v):
            put(row + d * t.real, wide, total[d] / whole if whole != 0 else 0)
        # The quotient is taken in double above; the tile only stores it.
        t.finish(one, one, row, s.dim_v, s.out + r * s.out_row, NULL)
        put(s.lse + r * s.merged_row, wide, top + log(whole))
    free(total)
    return 0
