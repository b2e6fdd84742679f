"""Orders of edges and distances along them: counting sort and breadth-first search.

Both take O(N + E) time and memory. Rows list the senders of a receiver, while the search
runs from senders to receivers, so the rows are transposed first, by the same counting sort.
"""

from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset


cdef inline int64_t entry(const void *array, bint wide, Py_ssize_t i) noexcept nogil:
    return (<const int64_t *> array)[i] if wide else (<const int32_t *> array)[i]


cdef void group_positions(const void *keys, bint wide, Py_ssize_t count, int64_t *indptr,
                          Py_ssize_t groups, int64_t *order) noexcept nogil:
    """Positions by key, equal keys as they came; indptr has groups + 1 entries."""
    cdef Py_ssize_t i, at
    cdef int64_t key
    # While positions are placed, indptr[k + 1] is where the next one of key k goes.
    memset(indptr, 0, (groups + 1) * sizeof(int64_t))
    for i in range(count):
        key = entry(keys, wide, i) + 2
        if key <= groups:
            indptr[key] += 1
    for i in range(2, groups + 1):
        indptr[i] += indptr[i - 1]
    for i in range(count):
        key = entry(keys, wide, i) + 1
        at = indptr[key]
        order[at] = i
        indptr[key] = at + 1


cdef int measure_hops(const int64_t *indptr, const void *indices, bint wide,
                      const int64_t *sources, Py_ssize_t num_sources, int64_t max_hops,
                      int64_t *out, Py_ssize_t nodes) except -1 nogil:
    """Least number of edges from any source to each node, -1 where there is no way."""
    cdef Py_ssize_t edges = indptr[nodes], i, e, head = 0, tail = 0
    cdef int64_t *memory = <int64_t *> malloc((2 * nodes + 1 + 2 * edges) * sizeof(int64_t))
    cdef int64_t *starts = memory
    cdef int64_t *queue = starts + nodes + 1
    cdef int64_t *order = queue + nodes
    cdef int64_t *receiver = order + edges
    cdef int64_t node, other, distance
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the transposed graph")
    group_positions(indices, wide, edges, starts, nodes, order)
    for i in range(nodes):
        out[i] = -1
        for e in range(indptr[i], indptr[i + 1]):
            receiver[e] = i
    for i in range(num_sources):
        if out[sources[i]] < 0:
            out[sources[i]] = 0
            queue[tail] = sources[i]
            tail += 1
    while head < tail:
        node = queue[head]
        head += 1
        distance = out[node]
        if distance == max_hops:
            break
        for e in range(starts[node], starts[node + 1]):
            other = receiver[order[e]]
            if out[other] < 0:
                out[other] = distance + 1
                queue[tail] = other
                tail += 1
    free(memory)
    return 0
