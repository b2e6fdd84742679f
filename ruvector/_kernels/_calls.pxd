"""How arrays and a specification become the engine's calls and segments."""

cimport numpy as cnp

from ruvector._kernels cimport _dispatch
from ruvector._kernels._problem cimport Ball, Call, Rotary, Segment


cdef struct Stored:
    # The tiles of a call whose keys and values are stored in another type than its queries.
    _dispatch.rv_softmax_tiles tiles
    _dispatch.rv_decode_tiles decode


cdef int describe(Call *call, cnp.ndarray query, cnp.ndarray key, spec) except -1
cdef int describe_stored(Call *call, Stored *stored, cnp.ndarray query, cnp.ndarray key,
                         spec) except -1
cdef int describe_rotary(Call *call, Rotary *rotary, cnp.ndarray query, spec) except -1
cdef Segment *batch_segments(Py_ssize_t count, cnp.ndarray query, cnp.ndarray key,
                             spec) except NULL
cdef int cut_segments(const Call *call, Segment *segments, const Segment *whole, spec,
                      Py_ssize_t count) except -1
cdef int describe_ball(Call *call, Ball *ball, cnp.ndarray query, cnp.ndarray key,
                       cnp.ndarray ball_query, cnp.ndarray ball_key, spec,
                       ball_spec) except -1
cdef Segment *ball_segments(Py_ssize_t count, cnp.ndarray query, cnp.ndarray key,
                            cnp.ndarray ball_query, cnp.ndarray ball_key,
                            spec) except NULL
