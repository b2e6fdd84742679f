/* ruvector's attention for extension modules in C and C++.
 *
 *     if (ruvector_import() != RUVECTOR_OK)
 *         return NULL;                      with the GIL, once, in every file that calls
 *     ...
 *     ruvector_attention_args args;
 *     ruvector_attention_init(&args);
 *     args.query = ...;
 *     status = ruvector_attention(&args);   with or without the GIL, in any thread
 *
 * Compile with the folder that ruvector.get_include() names; there is nothing to link.
 */
#ifndef RUVECTOR_H
#define RUVECTOR_H

#include <Python.h>

#include "ruvector_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Each file has a pointer of its own, so that nothing needs to be linked. */
static const ruvector_api *ruvector_api_table = NULL;

/* Find the installed package. On failure returns RUVECTOR_ERROR_IMPORT or RUVECTOR_ERROR_ABI
 * and sets ImportError. The caller holds the GIL. */
RUVECTOR_INLINE int ruvector_import(void)
{
    const ruvector_api *found;
    PyObject *module, *capsule;
    if (ruvector_api_table != NULL) return RUVECTOR_OK;
    module = PyImport_ImportModule("ruvector._kernels.capi");
    if (module == NULL) return RUVECTOR_ERROR_IMPORT;
    capsule = PyObject_GetAttrString(module, "_api");
    Py_DECREF(module);
    if (capsule == NULL) return RUVECTOR_ERROR_IMPORT;
    found = (const ruvector_api *)PyCapsule_GetPointer(capsule, "ruvector._kernels.capi._api");
    Py_DECREF(capsule); /* what it points at lives as long as the process */
    if (found == NULL) return RUVECTOR_ERROR_IMPORT;
    if (found->abi_version < RUVECTOR_ABI_VERSION) {
        PyErr_Format(PyExc_ImportError,
                     "this extension was compiled for version %d of ruvector's C interface, "
                     "ruvector %s has version %d: install a newer ruvector",
                     RUVECTOR_ABI_VERSION, found->version, found->abi_version);
        return RUVECTOR_ERROR_ABI;
    }
    ruvector_api_table = found;
    return RUVECTOR_OK;
}

/* Softmax attention: output, and L where `lse` is not null, of every query row. */
RUVECTOR_INLINE int ruvector_attention(const ruvector_attention_args *args)
{
    return ruvector_api_table ? ruvector_api_table->attention(args) : RUVECTOR_ERROR_IMPORT;
}

/* Write the strides of contiguous arrays from dtype and sizes; mask and bias keep theirs. */
RUVECTOR_INLINE int ruvector_attention_layout(ruvector_attention_args *args, int layout)
{
    return ruvector_api_table ? ruvector_api_table->attention_layout(args, layout)
                              : RUVECTOR_ERROR_IMPORT;
}

/* Merge the attention states of disjoint sets of keys, in index order. */
RUVECTOR_INLINE int ruvector_merge(const ruvector_merge_args *args)
{
    return ruvector_api_table ? ruvector_api_table->merge(args) : RUVECTOR_ERROR_IMPORT;
}

/* What a status means, in English; never null. */
RUVECTOR_INLINE const char *ruvector_message(int status)
{
    return ruvector_api_table ? ruvector_api_table->message(status)
                              : "ruvector_import() has not succeeded";
}

/* Name of the instruction set that runs, or null before ruvector_import(). */
RUVECTOR_INLINE const char *ruvector_isa(void)
{
    return ruvector_api_table ? ruvector_api_table->isa() : NULL;
}

#ifdef __cplusplus
}
#endif
#endif
