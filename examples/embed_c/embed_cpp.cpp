// Attention called from C++: each shard of a memory on a std::thread, then the merge.
//
// attend_shards(query, key, value, out, shards) takes C-contiguous float32 buffers of the axes
// (rows, heads, dim), as models that keep a cache of keys and values store them.
#include <Python.h>

#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "ruvector.h"

namespace {

class Array {
public:
    Array(PyObject *object, bool writable)
    {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object, &view_, flags) != 0) return;
        taken_ = true;
        if (view_.ndim == 3 && view_.format != nullptr && std::string(view_.format) == "f")
            good_ = true;
        else
            PyErr_SetString(PyExc_ValueError, "a float32 array with 3 axes is needed");
    }
    ~Array()
    {
        if (taken_) PyBuffer_Release(&view_);
    }
    Array(const Array &) = delete;
    Array &operator=(const Array &) = delete;

    explicit operator bool() const { return good_; }
    Py_ssize_t rows() const { return view_.shape[0]; }
    Py_ssize_t heads() const { return view_.shape[1]; }
    Py_ssize_t dim() const { return view_.shape[2]; }
    float *at(Py_ssize_t row) const
    {
        return static_cast<float *>(view_.buf) + row * heads() * dim();
    }

private:
    Py_buffer view_{};
    bool taken_ = false, good_ = false;
};

// Threads that are joined whatever happens.
struct Team {
    std::vector<std::thread> threads;
    ~Team()
    {
        for (std::thread &thread : threads) thread.join();
    }
};

struct States {
    std::vector<float> outputs, lses;
};

int attend_shard(const Array &q, const Array &k, const Array &v, Py_ssize_t first,
                 Py_ssize_t last, float *out, float *lse)
{
    ruvector_attention_args args;
    ruvector_attention_init(&args);
    args.dtype = RUVECTOR_F32;
    args.batch = 1;
    args.heads = q.heads();
    args.kv_heads = k.heads();
    args.queries = q.rows();
    args.keys = last - first;
    args.dim = q.dim();
    args.value_dim = v.dim();
    args.query = q.at(0);
    args.key = k.at(first);
    args.value = v.at(first);
    args.out = out;
    args.lse = lse;
    const int status = ruvector_attention_layout(&args, RUVECTOR_ROWS_FIRST);
    if (status != RUVECTOR_OK) return status;
    // L beside each (row, head), so that both have the same order.
    args.lse_strides[1] = sizeof(float);
    args.lse_strides[2] = args.heads * static_cast<ptrdiff_t>(sizeof(float));
    return ruvector_attention(&args);
}

int merge(const States &states, Py_ssize_t shards, Py_ssize_t rows, Py_ssize_t dim, float *out,
          float *lse)
{
    const ptrdiff_t item = sizeof(float);
    ruvector_merge_args args;
    ruvector_merge_init(&args);
    args.dtype = RUVECTOR_F32;
    args.parts = shards;
    args.rows = rows;
    args.dim = dim;
    args.outputs = states.outputs.data();
    args.outputs_strides[0] = rows * dim * item;
    args.outputs_strides[1] = dim * item;
    args.lses = states.lses.data();
    args.lses_strides[0] = rows * item;
    args.lses_strides[1] = item;
    args.out = out;
    args.out_stride = dim * item;
    args.lse = lse;
    args.lse_stride = item;
    return ruvector_merge(&args);
}

int compute(const Array &q, const Array &k, const Array &v, const Array &out, int shards)
try {
    const Py_ssize_t rows = q.rows() * q.heads(), dim = v.dim();
    States states{std::vector<float>(shards * rows * dim), std::vector<float>(shards * rows)};
    std::vector<float> lse(rows);
    std::vector<int> statuses(shards, RUVECTOR_OK);
    {
        Team team;
        team.threads.reserve(shards);
        for (int s = 0; s < shards; s++)
            team.threads.emplace_back([&, s] {
                statuses[s] = attend_shard(q, k, v, s * k.rows() / shards,
                                           (s + 1) * k.rows() / shards,
                                           states.outputs.data() + s * rows * dim,
                                           states.lses.data() + s * rows);
            });
    }
    for (const int status : statuses)
        if (status != RUVECTOR_OK) return status;
    return merge(states, shards, rows, dim, out.at(0), lse.data());
} catch (const std::exception &) {
    return RUVECTOR_ERROR_MEMORY;  // of vectors, or of threads
}

PyObject *attend_shards(PyObject *, PyObject *arguments)
{
    PyObject *query, *key, *value, *output;
    int shards, status;
    if (!PyArg_ParseTuple(arguments, "OOOOi", &query, &key, &value, &output, &shards))
        return nullptr;
    const Array q(query, false);
    if (!q) return nullptr;
    const Array k(key, false);
    if (!k) return nullptr;
    const Array v(value, false);
    if (!v) return nullptr;
    const Array out(output, true);
    if (!out) return nullptr;
    if (shards < 1 || k.dim() != q.dim() || v.rows() != k.rows() || v.heads() != k.heads() ||
        out.rows() != q.rows() || out.heads() != q.heads() || out.dim() != v.dim()) {
        PyErr_SetString(PyExc_ValueError, "the shapes do not fit each other");
        return nullptr;
    }
    Py_BEGIN_ALLOW_THREADS
    status = compute(q, k, v, out, shards);
    Py_END_ALLOW_THREADS
    if (status != RUVECTOR_OK) {
        PyErr_SetString(PyExc_ValueError, ruvector_message(status));
        return nullptr;
    }
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"attend_shards", attend_shards, METH_VARARGS,
     "attend_shards(query, key, value, out, shards)"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "embed_cpp", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit_embed_cpp()
{
    if (ruvector_import() != RUVECTOR_OK) return nullptr;
    return PyModule_Create(&definition);
}
