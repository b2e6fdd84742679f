"""How arrays and a specification become the engine's calls and segments."""

cimport numpy as cnp

from ruvector._kernels._problem cimport Ball, Call, Segment


cdef int describe(Call *call, cnp.ndarray query, cnp.ndarray key, spec) except -1
cdef Segment *batch_segments(Py_ssize_t count, cnp.ndarray query, cnp.ndarray key,
                             spec) except NULL
cdef int describe_ball(Call *call, Ball *ball, cnp.ndarray query, cnp.ndarray key,
                       cnp.ndarray ball_query, cnp.ndarray ball_key, spec,
                       ball_spec) except -1
cdef Segment *ball_segments(Py_ssize_t count, cnp.ndarray query, cnp.ndarray key,
                            cnp.ndarray ball_query, cnp.ndarray ball_key,
                            spec) except NULL
cdef int cut_segments(const Call *call, Segment *segments, const Segment *whole, spec,
                      Py_ssize_t count) except -1
