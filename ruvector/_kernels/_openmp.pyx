"""Every OpenMP call of the package; without OpenMP each team has one thread."""

cdef extern from "simd/openmp.h" nogil:
    int RV_OPENMP
    int omp_get_max_threads()
    int omp_get_thread_num()
    int omp_in_parallel()

OPENMP = RV_OPENMP != 0

# What the runtime allowed when the package was imported. threadpoolctl lowers the runtime's
# number while it limits OpenMP; a number that was never lowered is no limit, so that a caller
# may ask for more threads than there are processors.
cdef int at_import = omp_get_max_threads()


def max_threads():
    """Threads that the OpenMP runtime would use on its own in the calling thread."""
    return omp_get_max_threads()


cdef int team_size(int threads, Py_ssize_t items) noexcept nogil:
    """Threads to start for `items` pieces of work when the caller wants `threads`."""
    cdef int allowed = omp_get_max_threads()
    if RV_OPENMP == 0 or omp_in_parallel():
        return 1
    if allowed < at_import and threads > allowed:
        threads = allowed
    if threads > items:
        threads = <int>items
    return threads if threads > 1 else 1


cdef int thread_index() noexcept nogil:
    """Index of the calling thread in its team."""
    return omp_get_thread_num()
