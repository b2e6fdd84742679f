/* Attention called from C: an extension module with one function.
 *
 * attend(query, key, value, out, is_causal) takes C-contiguous float32 buffers of the axes
 * (heads, rows, dim) and writes softmax(q k^T / sqrt(dim)) v to `out`, without the GIL.
 */
#include <Python.h>

#include "ruvector.h"

static int take(PyObject *object, Py_buffer *view, int writable)
{
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) != 0) return -1;
    if (view->ndim == 3 && view->format != NULL && strcmp(view->format, "f") == 0) return 0;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_ValueError, "a float32 array with 3 axes is needed");
    return -1;
}

static int fits(const Py_buffer *q, const Py_buffer *k, const Py_buffer *v, const Py_buffer *o)
{
    return q->shape[2] == k->shape[2] && v->shape[0] == k->shape[0] &&
           v->shape[1] == k->shape[1] && o->shape[0] == q->shape[0] &&
           o->shape[1] == q->shape[1] && o->shape[2] == v->shape[2];
}

static PyObject *attend(PyObject *self, PyObject *arguments)
{
    static const char *const misfit = "the shapes do not fit each other";
    PyObject *objects[4], *result = NULL;
    Py_buffer views[4];
    ruvector_attention_args args;
    int causal, taken, status;

    (void)self;
    if (!PyArg_ParseTuple(arguments, "OOOOp", &objects[0], &objects[1], &objects[2],
                          &objects[3], &causal))
        return NULL;
    for (taken = 0; taken < 4; taken++)
        if (take(objects[taken], &views[taken], taken == 3) != 0) goto release;
    if (!fits(&views[0], &views[1], &views[2], &views[3])) {
        PyErr_SetString(PyExc_ValueError, misfit);
        goto release;
    }

    ruvector_attention_init(&args);
    args.dtype = RUVECTOR_F32;
    args.batch = 1;
    args.heads = views[0].shape[0];
    args.queries = views[0].shape[1];
    args.dim = views[0].shape[2];
    args.kv_heads = views[1].shape[0];
    args.keys = views[1].shape[1];
    args.value_dim = views[2].shape[2];
    args.query = views[0].buf;
    args.key = views[1].buf;
    args.value = views[2].buf;
    args.out = views[3].buf;
    args.causal = causal;
    args.threads = 2;
    status = ruvector_attention_layout(&args, RUVECTOR_HEADS_FIRST);
    if (status == RUVECTOR_OK) {
        Py_BEGIN_ALLOW_THREADS
        status = ruvector_attention(&args);
        Py_END_ALLOW_THREADS
    }
    if (status != RUVECTOR_OK) {
        PyErr_SetString(PyExc_ValueError, ruvector_message(status));
        goto release;
    }
    result = Py_None;
    Py_INCREF(result);

release:
    while (taken > 0) PyBuffer_Release(&views[--taken]);
    return result;
}

static PyMethodDef methods[] = {
    {"attend", attend, METH_VARARGS, "attend(query, key, value, out, is_causal)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "embed_c", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_embed_c(void)
{
    if (ruvector_import() != RUVECTOR_OK) return NULL;
    return PyModule_Create(&definition);
}
