"""The Poincare ball beside the two drivers of the softmax engine."""

from libc.stdint cimport int64_t

from ruvector._kernels._dispatch cimport rv_ball_rows
from ruvector._kernels._problem cimport Call, Segment


cdef struct BallTile:
    # A tile of query rows: x(q) across the lanes, and what scores need of each.
    char *qt
    rv_ball_rows rows


cdef struct BallScratch:
    # One key tile: keys and values as the tiles read them, and what is needed of each row.
    const char *keys
    const char *values
    Py_ssize_t ldk, ldv
    rv_ball_rows key_rows, value_rows
    char *key_tile
    char *value_tile
    char *dot
    char *wide
    double *norms


cdef Py_ssize_t tile_bytes(const Call *call) noexcept nogil
cdef char *lay_out_tile(const Call *call, char *at, BallTile *tile) noexcept nogil
cdef Py_ssize_t scratch_bytes(const Call *call) noexcept nogil
cdef char *lay_out(const Call *call, char *at, BallScratch *scratch) noexcept nogil
cdef void load_queries(const Call *call, const Segment *segment, int kv_head, Py_ssize_t row,
                       int rows, int cols, BallTile *tile,
                       BallScratch *scratch) noexcept nogil
cdef void load_key_lanes(const Call *call, const Segment *segment, int kv_head,
                         int64_t first_key, int lanes, int cols, BallTile *tile,
                         BallScratch *scratch) noexcept nogil
cdef void load_rows(const Call *call, const char *stored, Py_ssize_t stride, int n,
                    BallScratch *scratch) noexcept nogil
cdef void load_keys(const Call *call, const Segment *segment, int kv_head, int64_t first_key,
                    int nk, BallScratch *scratch) noexcept nogil
cdef void load_values(const Call *call, const Segment *segment, int kv_head,
                      int64_t first_key, int nk, BallScratch *scratch) noexcept nogil
cdef void add_scores(const Call *call, const BallTile *tile, int nk, int cols,
                     const BallScratch *scratch, char *s) noexcept nogil
cdef void differentiate_scores(const Call *call, const BallTile *tile, int nk, int cols,
                               const BallScratch *scratch, char *ds, const char *raw,
                               char *sums, char *mass, char *pairs,
                               char *distance) noexcept nogil
cdef void accumulate(const Call *call, int nk, int cols, char *p, const char *raw,
                     const BallScratch *scratch, char *o) noexcept nogil


cdef struct BallRows:
    # Decoding: x(q) of every row as reals, and one key tile's factors, squared distances and
    # marks of those that need differences.
    char *q
    rv_ball_rows query_rows, key_rows
    char *squares
    char *repair
    double *norms


cdef Py_ssize_t row_scratch_bytes(const Call *call, Py_ssize_t rows) noexcept nogil
cdef void lay_out_row_scratch(const Call *call, char *at, Py_ssize_t rows,
                              BallRows *scratch) noexcept nogil
cdef void load_query_rows(const Call *call, const Segment *segment, int first_head, int rows,
                          BallRows *scratch) noexcept nogil
cdef void add_row_scores(const Call *call, const Segment *segment, int first_head, int rows,
                         int64_t first_key, int nk, char *s, Py_ssize_t lds,
                         BallRows *scratch) noexcept nogil
cdef void accumulate_rows(const Call *call, const Segment *segment, int first_head, int rows,
                          int64_t first_key, int nk, char *p, const char *raw, Py_ssize_t lds,
                          char *o, Py_ssize_t ldo, BallRows *scratch) noexcept nogil
cdef void finish_row(const Call *call, const char *l, const char *o,
                     char *out) noexcept nogil
