"""Linear attention: the compiled kernels' Python face.

Arguments and results are those of the NumPy twin, fallback/linear.py, whose docstrings
describe them. Here arrays become pointers and strides, and nothing is computed: the engine
does that without the GIL.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memset

from ruvector._kernels._dispatch cimport RV_F32, RV_F64, tiles
from ruvector._kernels._features cimport Map, Sums, fold_sums
from ruvector._kernels._linear cimport Call, run, sums_of
from ruvector._kernels._numpy cimport data, dtype_of, length, stride

cnp.import_array()


cdef int describe(Call *call, cnp.ndarray x, Py_ssize_t dim_v, features) except -1:
    """Fill in the feature map for rows like those of `x`, and the heads."""
    cdef int dtype = dtype_of(x), reals = RV_F64 if dtype == RV_F64 else RV_F32
    cdef cnp.ndarray projection = features.projection
    cdef Map *map = &call.map
    memset(call, 0, sizeof(Call))
    map.stored, map.reals = tiles().wide[dtype], tiles().softmax[reals]
    map.linear, map.backward = tiles().linear[reals], tiles().backward[reals]
    map.norms = tiles().ball[dtype]
    map.exponential, map.elu = features.kernel == "softmax", features.kernel == "elu"
    map.scale, map.epsilon, map.gain = features.scale, features.epsilon, features.gain
    map.features, map.dim, map.dim_v = length(projection, 0), length(projection, 1), dim_v
    map.projection = data(projection)
    call.batch, call.heads = length(x, 0), length(x, 1)
    return 0


cdef int describe_keys(Call *call, cnp.ndarray key, cnp.ndarray value, bias) except -1:
    call.absorbs = True
    call.first.k, call.first.v = data(key), data(value)
    call.k_batch, call.k_head, call.first.k_row = stride(key, 0), stride(key, 1), stride(key, 2)
    call.v_batch, call.v_head = stride(value, 0), stride(value, 1)
    call.first.v_row = stride(value, 2)
    call.first.lk = length(key, 2)
    if bias is not None:
        call.first.bias, call.bias_batch = data(bias), stride(bias, 0)
    return 0


cdef int describe_queries(Call *call, cnp.ndarray query, cnp.ndarray out, lse) except -1:
    call.reads = True
    call.first.q, call.first.out = data(query), data(out)
    call.q_batch, call.q_head = stride(query, 0), stride(query, 1)
    call.first.q_row = stride(query, 2)
    call.out_batch, call.out_head = stride(out, 0), stride(out, 1)
    call.first.out_row = stride(out, 2)
    call.first.lq = length(query, 2)
    if lse is not None:
        call.first.lse = data(lse)
        call.lse_batch, call.lse_head = stride(lse, 0), stride(lse, 1)
        call.first.lse_row = stride(lse, 2)
    return 0


cdef Sums first_sums(state) except *:
    cdef Sums sums
    sums.numerator = <double *> data(state.numerator)
    sums.denominator = <double *> data(state.denominator)
    sums.stabiliser = <double *> data(state.stabiliser)
    sums.value_sum = <double *> data(state.value_sum)
    sums.count = <int64_t *> data(state.num_keys)
    return sums


def attend(cnp.ndarray query not None, cnp.ndarray key not None, cnp.ndarray value not None,
           bias, cnp.ndarray out not None, lse, bint causal, features, int threads):
    """Compute the output and L of every query row over a sequence of keys."""
    cdef Call call
    describe(&call, query, length(value, 3), features)
    describe_keys(&call, key, value, bias)
    describe_queries(&call, query, out, lse)
    # One query stands at the last position.
    call.causal = causal and call.first.lq > 1
    if call.batch == 0 or call.heads == 0 or call.first.lq == 0:
        return
    with nogil:
        run(&call, threads)


def absorb(cnp.ndarray key not None, cnp.ndarray value not None, bias, state, features,
           int threads):
    """Add keys and values to a state, in place."""
    cdef Call call
    describe(&call, key, length(value, 3), features)
    describe_keys(&call, key, value, bias)
    call.sums = first_sums(state)
    if call.batch == 0 or call.heads == 0:
        return
    with nogil:
        run(&call, threads)


def attend_state(cnp.ndarray query not None, state, cnp.ndarray out not None, lse, features,
                 int threads):
    """Compute the output and L of every query row from a state."""
    cdef Call call
    describe(&call, query, length(out, 3), features)
    describe_queries(&call, query, out, lse)
    call.sums = first_sums(state)
    if call.batch == 0 or call.heads == 0 or call.first.lq == 0:
        return
    with nogil:
        run(&call, threads)


def merge(state, other):
    """Add the keys of another state to a state, in place."""
    cdef Map map
    cdef Sums own = first_sums(state), added = first_sums(other)
    cdef Sums target, source
    cdef cnp.ndarray numerator = state.numerator
    cdef Py_ssize_t count = length(numerator, 0) * length(numerator, 1), i
    memset(&map, 0, sizeof(Map))
    map.features, map.dim_v = length(numerator, 2), length(numerator, 3)
    with nogil:
        for i in range(count):
            target, source = sums_of(&map, &own, i), sums_of(&map, &added, i)
            fold_sums(&map, &source, &target)
