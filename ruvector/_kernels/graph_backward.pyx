"""The gradient of attention along edges: the compiled kernels' Python face.

Arguments and results are those of the NumPy twin, fallback/graph_backward.py, whose
docstrings describe them. Here arrays become pointers and strides; the drivers compute without
the GIL.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memset

from ruvector._kernels cimport _dispatch
from ruvector._kernels._edge_gradients cimport Gradient
from ruvector._kernels._edges_backward cimport run_gradient
from ruvector._kernels._gram cimport Gram, run_gram
from ruvector._kernels._loops cimport Loops, fill_loops, fold_loops
from ruvector._kernels._numpy cimport data, dtype_of, length, stride
from ruvector._kernels.graph cimport describe

cnp.import_array()


cdef inline char *data_or_null(array) except? NULL:
    return NULL if array is None else data(array)


cdef inline Py_ssize_t row(array) except -1:
    return 0 if array is None else stride(array, 0)


def weight_gradient(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray out, int threads):
    """Multiply the transpose of rows of gradients by rows of inputs."""
    cdef Gram p
    p.tiles = _dispatch.tiles().softmax[dtype_of(x)]
    p.rows, p.dim = length(x, 0), length(x, 1)
    p.width = length(grad, 1)
    p.x, p.grad, p.out = data(x), data(grad), data(out)
    p.x_row, p.grad_row, p.out_row = row(x), row(grad), row(out)
    with nogil:
        run_gram(&p, threads)


cdef int describe_loops(Loops *p, cnp.ndarray x, cnp.ndarray indptr, cnp.ndarray indices,
                        Py_ssize_t nodes, cnp.ndarray out) except -1:
    p.receivers, p.nodes = length(indptr, 0) - 1, nodes
    p.width, p.real = length(x, 1), cnp.PyArray_ITEMSIZE(x)
    p.indptr, p.indices = <const int64_t *> data(indptr), <const int64_t *> data(indices)
    p.x, p.x_row, p.out, p.out_row = data(x), row(x), data(out), row(out)
    return 0


def loop_features(cnp.ndarray features, cnp.ndarray indptr, cnp.ndarray indices,
                  Py_ssize_t nodes, cnp.ndarray out):
    """Give edges from nodes to themselves the mean features of the node's others."""
    cdef Loops p
    describe_loops(&p, features, indptr, indices, nodes, out)
    with nogil:
        fill_loops(&p)


def loop_features_gradient(cnp.ndarray grad, cnp.ndarray indptr, cnp.ndarray indices,
                           Py_ssize_t nodes, cnp.ndarray out):
    """Differentiate :func:`loop_features`."""
    cdef Loops p
    describe_loops(&p, grad, indptr, indices, nodes, out)
    with nogil:
        fold_loops(&p)


def attend_backward(cnp.ndarray left, cnp.ndarray messages, cnp.ndarray right, edges, bias,
                    spec, cnp.ndarray indptr, cnp.ndarray indices, cnp.ndarray lse,
                    cnp.ndarray delta, cnp.ndarray grad_sums, cnp.ndarray grad_left,
                    grad_messages, cnp.ndarray grad_right, grad_edges, grad_bias,
                    cnp.ndarray grad_att, grad_weight, int threads):
    """Differentiate the attended sums of every receiver and their log-sum-exp."""
    cdef Gradient d
    cdef char *memory
    memset(&d, 0, sizeof(Gradient))
    memory = describe(&d.graph, spec.att, edges, spec, 1.0)
    try:
        d.products = _dispatch.tiles().softmax[dtype_of(left)]
        d.graph.senders, d.graph.receivers = (
            length(left, 0), length(right, 0))
        d.graph.edges = length(indices, 0)
        d.graph.left, d.graph.left_row = data(left), row(left)
        d.graph.right, d.graph.right_row = data(right), row(right)
        d.graph.features, d.graph.feature_row = data_or_null(edges), row(edges)
        d.graph.indptr, d.graph.indices = <const int64_t *> data(indptr), data(indices)
        d.graph.wide = True
        d.messages, d.message_row = data(messages), row(messages)
        d.sums, d.sum_row = data(grad_sums), row(grad_sums)
        d.lse, d.delta, d.state_row = data(lse), data(delta), row(lse)
        d.bias = data_or_null(bias)
        d.left, d.left_row = data(grad_left), row(grad_left)
        d.message, d.message_out_row = data_or_null(grad_messages), row(grad_messages)
        d.right, d.right_row = data(grad_right), row(grad_right)
        d.features, d.feature_row = data_or_null(grad_edges), row(grad_edges)
        d.edge_bias, d.att = data_or_null(grad_bias), data(grad_att)
        d.weight, d.weight_row = data_or_null(grad_weight), row(grad_weight)
        with nogil:
            run_gradient(&d, threads)
    finally:
        free(memory)
