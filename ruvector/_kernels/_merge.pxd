"""The merge of attention states of disjoint key sets."""

from ruvector._kernels._dispatch cimport rv_decode_tiles


cdef struct States:
    # (o, L) of `rows` rows in `parts` parts, and where the merged state goes. Byte strides.
    Py_ssize_t parts, rows, dim_v
    const char *outputs
    const char *lses
    Py_ssize_t output_part, output_row, lse_part, lse_row
    char *out
    char *lse
    Py_ssize_t out_row, merged_row


cdef int merge_states(const rv_decode_tiles *t, const States *states) noexcept nogil
