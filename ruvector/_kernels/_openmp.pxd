cdef int team_size(int threads, Py_ssize_t items) noexcept nogil
cdef int thread_index() noexcept nogil
