"""The gradient of the streaming softmax over any number of sequences."""

from ruvector._kernels._dispatch cimport rv_backward_tiles
from ruvector._kernels._problem cimport Call, Segment


cdef struct Gradients:
    # What all sequences share: byte strides of the gradients, which have the storage type of
    # the arrays they belong to. A gradient that is not wanted is null in every GradientSegment.
    const rv_backward_tiles *tiles
    Py_ssize_t out_head, out_row, lse_head, lse_row
    Py_ssize_t q_head, q_row, k_head, k_row, v_head, v_row
    Py_ssize_t bias_head, bias_row, bias_key


cdef struct BallGradients:
    # What a ball's points of one sequence get, contiguous reals: q (heads, lq, ball dim) and
    # k (kv_heads, lk, ball dim), less x times `mass`, and beside each row the sums `mass` and
    # `pairs` of simd/ball.inc.h; `distances` (heads, lq), which may be null, is
    # log2(e) sum_j dS asinh(sqrt(u)).
    char *q
    char *q_mass
    char *q_pairs
    char *k
    char *k_mass
    char *k_pairs
    char *distances


cdef struct GradientSegment:
    # One sequence, all heads. lse may be null; `slopes` takes sum_j dS |pos - j| of each row
    # as (heads, lq) reals, `delta` and `lse2` are scratch of that shape; with a ball `delta` is
    # given.
    const char *out
    const char *lse
    char *q
    char *k
    char *v
    char *bias
    char *slopes
    char *delta
    char *lse2
    BallGradients ball


cdef int run_backward(const Call *call, const Segment *segments, const Gradients *gradients,
                      const GradientSegment *wanted, Py_ssize_t count,
                      int threads) except -1 nogil
