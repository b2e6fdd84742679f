"""Causal linear attention: blocks of positions, one after another."""

from ruvector._kernels._features cimport Map, Rows, Scratch


cdef struct Prefix:
    # What the positions so far have left: for each tile of features [dim_v + 1][cols] reals,
    # the denominator last, relative to `top` (in units of log2); sums of the values, the
    # number of keys last.
    char *sums
    double *values
    double top


cdef struct CausalScratch:
    # One thread's buffers beside those of Scratch: features of the keys of a block, tile by
    # tile, and of the queries; reals for each key, for each column and for each query.
    char *phi_keys
    char *phi_queries
    char *products
    char *weighed
    char *key_tops
    char *column
    char *factor
    char *share
    char *top
    char *count


cdef Py_ssize_t lay_out_prefix(const Map *map, Py_ssize_t memory,
                               Prefix *prefix) noexcept nogil
cdef Py_ssize_t lay_out_causal(const Map *map, Py_ssize_t memory,
                               CausalScratch *causal) noexcept nogil
cdef void attend_positions(const Map *map, const Rows *rows, Prefix *prefix,
                           Py_ssize_t begin, Py_ssize_t end, const Scratch *scratch,
                           const CausalScratch *causal) noexcept nogil
