"""What the kernels' Python faces read of NumPy arrays."""

cimport numpy as cnp

from ruvector._kernels._dispatch cimport RV_BF16, RV_F16, RV_F32, RV_F64, RV_I8


cdef inline char *data(cnp.ndarray array) noexcept:
    return <char *> cnp.PyArray_DATA(array)


cdef inline Py_ssize_t stride(cnp.ndarray array, int axis) noexcept:
    return cnp.PyArray_STRIDE(array, axis)


cdef inline Py_ssize_t length(cnp.ndarray array, int axis) noexcept:
    return cnp.PyArray_DIM(array, axis)


cdef inline int dtype_of(cnp.ndarray array) except -1:
    # uint16 holds the bits of bfloat16.
    cdef int number = cnp.PyArray_TYPE(array)
    if number == cnp.NPY_FLOAT32:
        return RV_F32
    if number == cnp.NPY_FLOAT64:
        return RV_F64
    if number == cnp.NPY_FLOAT16:
        return RV_F16
    if number == cnp.NPY_UINT16:
        return RV_BF16
    raise TypeError(f"no kernel for arrays of {array.dtype}")


cdef inline int stored_type(cnp.ndarray array) except -1:
    return RV_I8 if cnp.PyArray_TYPE(array) == cnp.NPY_INT8 else dtype_of(array)


cdef inline bint is_plain(object array, int axes) noexcept:
    # A C-contiguous, aligned, native float32 ndarray of that many axes.
    return (
        cnp.PyArray_CheckExact(array)
        and cnp.PyArray_NDIM(<cnp.ndarray> array) == axes
        and cnp.PyArray_TYPE(<cnp.ndarray> array) == cnp.NPY_FLOAT32
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> array)
    )
