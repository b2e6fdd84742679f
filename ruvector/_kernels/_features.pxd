"""Features of keys and queries, and the sums that linear attention keeps of them."""

from libc.stdint cimport int64_t

from ruvector._kernels._dispatch cimport (
    rv_backward_tiles, rv_ball_tiles, rv_linear_tiles, rv_softmax_tiles,
)


cdef struct Map:
    # The feature map, and the tiles over stored rows (`stored`; they load reals) and over
    # reals. `packed` holds the rows of the projection across the lanes, tile after tile.
    const rv_softmax_tiles *stored
    const rv_softmax_tiles *reals
    const rv_linear_tiles *linear
    const rv_ball_tiles *norms
    const rv_backward_tiles *backward
    bint exponential, elu
    double scale, epsilon, gain
    Py_ssize_t features, dim, dim_v
    const char *projection
    char *packed


cdef struct Rows:
    # One sequence of one head. Strides are in bytes; bias and lse may be null.
    const char *q
    const char *k
    const char *v
    const char *bias
    char *out
    char *lse
    Py_ssize_t q_row, k_row, v_row, out_row, lse_row, lq, lk


cdef struct Sums:
    # The state of one head as the caller has it.
    double *numerator
    double *denominator
    double *stabiliser
    double *value_sum
    int64_t *count


cdef struct Part:
    # Sums over some keys, each feature relative to a maximum of its own: `rows` is
    # [features][dim_v] reals, `tops` (in units of log2) and `weights` [features] reals.
    char *rows
    char *tops
    char *weights
    double *value_sum
    int64_t *count


cdef struct Reader:
    # What queries read: [features][dim_v + 1] reals, the denominator last; epsilon times
    # their sums over the features; the exponent they are relative to. `work` is
    # 2 (dim_v + 1) numbers.
    char *rows
    char *shares
    double *work
    double *stabiliser


cdef struct Keys:
    # Visible keys and values as reals. `shift` is what is subtracted from exponents (in units
    # of log2), or what other features are multiplied by; null where there is nothing.
    const char *keys
    const char *values
    const char *shift
    Py_ssize_t ldk, ldv
    int count


cdef struct Scratch:
    # One thread's buffers.
    char *keys
    char *values
    char *shift
    double *norms
    char *s
    char *o
    char *m
    char *l
    char *ones
    char *column
    char *qt
    const void **rows
    void **outs
    void **lses


cdef inline Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return (size + 63) & ~<Py_ssize_t> 63


cdef inline char *take(Py_ssize_t *at, Py_ssize_t size) noexcept nogil:
    # Room from a block of memory, whose next free byte is at[0].
    cdef char *start = <char *> at[0]
    at[0] += aligned(size)
    return start


cdef inline double real_at(const Map *map, const char *reals, Py_ssize_t index) noexcept nogil:
    if map.reals.real == sizeof(double):
        return (<const double *> reals)[index]
    return (<const float *> reals)[index]


cdef inline void set_real(const Map *map, char *reals, Py_ssize_t index,
                          double value) noexcept nogil:
    if map.reals.real == sizeof(double):
        (<double *> reals)[index] = value
    else:
        (<float *> reals)[index] = <float> value


cdef inline Py_ssize_t feature_tiles(const Map *map) noexcept nogil:
    return (map.features + map.reals.cols - 1) // map.reals.cols


cdef inline int tile_cols(const Map *map, Py_ssize_t tile) noexcept nogil:
    # Lanes of a tile of features: one vector where the rest fits into it.
    cdef Py_ssize_t rest = map.features - tile * map.reals.cols
    return map.reals.lanes if rest <= map.reals.lanes else map.reals.cols


cdef inline char *packed_tile(const Map *map, Py_ssize_t tile) noexcept nogil:
    return map.packed + tile * map.reals.cols * map.dim * map.reals.real


cdef Py_ssize_t packed_bytes(const Map *map) noexcept nogil
cdef void pack_projection(const Map *map, const void **rows) noexcept nogil
cdef Py_ssize_t chunk_keys(const Map *map) noexcept nogil
cdef Py_ssize_t lay_out(const Map *map, Py_ssize_t memory, Scratch *scratch) noexcept nogil
cdef void load_keys(const Map *map, const Rows *rows, Py_ssize_t begin, Py_ssize_t end,
                    const Scratch *scratch, Keys *keys) noexcept nogil
cdef void start_lanes(const Map *map, char *m, char *l, int cols) noexcept nogil
cdef double query_shift(const Map *map, const char *query) noexcept nogil
cdef void absorb_keys(const Map *map, const Rows *rows, Py_ssize_t first_tile,
                      Py_ssize_t tiles, Py_ssize_t begin, Py_ssize_t end,
                      const Scratch *scratch, Part *part) noexcept nogil
cdef void fold(const Map *map, const Part *part, const Sums *sums) noexcept nogil
cdef void fold_sums(const Map *map, const Sums *other, const Sums *sums) noexcept nogil
cdef void prepare(const Map *map, const Sums *sums, Reader *reader) noexcept nogil
cdef void read_rows(const Map *map, const Rows *rows, const Reader *reader, Py_ssize_t start,
                    Py_ssize_t stop, const Scratch *scratch) noexcept nogil
