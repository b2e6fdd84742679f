"""Features of keys and queries: tiles of scores against the rows of a projection W.

Keys: rows of W lie across the lanes, and a pass of the online softmax over the keys leaves
sum_j phi_m(k_j) v_j and sum_j phi_m(k_j) for each feature m, relative to a maximum of its own.
Queries: they lie across the lanes, and W and those sums are the keys and the values that they
attend to; the denominator is the last column of the values. Either pass is the engine's, with
its tiles; simd/linear.inc.h has what they lack. Memory: a chunk of keys, a tile of scores.
"""

from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport INFINITY, exp, log
from libc.string cimport memcpy, memset

from ruvector._kernels._dispatch cimport rv_softmax_tiles

cdef double LOG2E = 1.4426950408889634
cdef double LN2 = 0.6931471805599453
# Bytes of keys and values that stay in a core's cache while one tile of features after
# another walks over them.
cdef Py_ssize_t CHUNK_BYTES = 1 << 18


cdef Py_ssize_t packed_bytes(const Map *map) noexcept nogil:
    return aligned((feature_tiles(map) * map.dim + 1) * map.reals.cols * map.reals.real)


cdef void pack_projection(const Map *map, const void **rows) noexcept nogil:
    """Lay the rows of the projection across the lanes; `rows` has room for one tile."""
    cdef Py_ssize_t tile, i
    cdef int lane
    for tile in range(feature_tiles(map)):
        for lane in range(tile_cols(map, tile)):
            i = min(tile * map.reals.cols + lane, map.features - 1)
            rows[lane] = map.projection + i * map.dim * map.reals.real
        map.reals.pack(rows, tile_cols(map, tile), map.dim,
                       map.scale * LOG2E if map.exponential else map.scale,
                       packed_tile(map, tile))


cdef Py_ssize_t chunk_keys(const Map *map) noexcept nogil:
    cdef Py_ssize_t tile = map.reals.key_tile * (map.dim + map.dim_v + 1) * map.reals.real
    return map.reals.key_tile * max(1, min(8, CHUNK_BYTES // tile))


cdef Py_ssize_t lay_out(const Map *map, Py_ssize_t memory, Scratch *scratch) noexcept nogil:
    """Place the buffers of one thread at an aligned address; returns the end of them."""
    cdef const rv_softmax_tiles *t = map.reals
    cdef Py_ssize_t chunk = chunk_keys(map), lanes = t.cols * t.real, at = memory
    scratch.keys = take(&at, chunk * map.dim * t.real)
    scratch.values = take(&at, chunk * map.dim_v * t.real)
    scratch.shift = take(&at, chunk * t.real)
    scratch.norms = <double *> take(&at, chunk * sizeof(double))
    scratch.s = take(&at, t.key_tile * lanes)
    scratch.o = take(&at, (map.dim_v + 1) * lanes)
    scratch.m = take(&at, lanes)
    scratch.l = take(&at, lanes)
    scratch.ones = take(&at, lanes)
    scratch.column = take(&at, (map.dim_v + 1) * t.real)
    scratch.qt = take(&at, (map.dim + 1) * lanes)
    scratch.rows = <const void **> take(&at, t.cols * sizeof(void *))
    scratch.outs = <void **> take(&at, t.cols * sizeof(void *))
    scratch.lses = <void **> take(&at, t.cols * sizeof(void *))
    return at


cdef inline void copy_rows(const Map *map, const char *source, Py_ssize_t stride,
                           Py_ssize_t count, Py_ssize_t width, char *out) noexcept nogil:
    cdef Py_ssize_t i
    if map.stored.load_keys != NULL:
        map.stored.load_keys(source, stride // map.stored.item, <int> count, width, out)
        return
    for i in range(count):
        memcpy(out + i * width * map.stored.item, source + i * stride, width * map.stored.item)


cdef void load_keys(const Map *map, const Rows *rows, Py_ssize_t begin, Py_ssize_t end,
                    const Scratch *scratch, Keys *keys) noexcept nogil:
    """Collect the visible keys among [begin, end): in place where that can be, or copied."""
    cdef const rv_softmax_tiles *t = map.reals
    cdef Py_ssize_t first = begin, last, n = 0, j, run
    cdef const char *k
    cdef double bias
    cdef bint in_place = (
        rows.bias == NULL and map.stored.load_keys == NULL
        and rows.k_row == map.dim * t.real and rows.v_row == map.dim_v * t.real
    )
    while first < end:
        last = end
        if rows.bias != NULL:
            while first < end and real_at(map, rows.bias, first) == -INFINITY:
                first += 1
            last = first
            while last < end and real_at(map, rows.bias, last) != -INFINITY:
                last += 1
        run = last - first
        k = rows.k + first * rows.k_row
        if map.exponential and run > 0:
            map.norms.square_norms(k, rows.k_row // map.stored.item, <int> run, map.dim, 0.0,
                                   scratch.norms + n)
        if not in_place:
            copy_rows(map, k, rows.k_row, run, map.dim, scratch.keys + n * map.dim * t.real)
            copy_rows(map, rows.v + first * rows.v_row, rows.v_row, run, map.dim_v,
                      scratch.values + n * map.dim_v * t.real)
        for j in range(run):
            bias = 0.0 if rows.bias == NULL else real_at(map, rows.bias, first + j)
            if map.exponential:
                set_real(map, scratch.shift, n + j,
                         (0.5 * map.scale * map.scale * scratch.norms[n + j] - bias) * LOG2E)
            elif rows.bias != NULL:
                set_real(map, scratch.shift, n + j, exp(bias))
        n += run
        first = last
    keys.count = <int> n
    keys.ldk, keys.ldv = map.dim, map.dim_v
    keys.keys, keys.values = scratch.keys, scratch.values
    if in_place:
        keys.keys, keys.values = rows.k + begin * rows.k_row, rows.v + begin * rows.v_row
    keys.shift = scratch.shift if map.exponential or rows.bias != NULL else NULL


cdef void start_lanes(const Map *map, char *m, char *l, int cols) noexcept nogil:
    """Maxima at the lowest finite number, so that -inf less them is never NaN, and sums at 0;
    exponents of other features are 0."""
    cdef double lowest = -DBL_MAX if map.reals.real == sizeof(double) else -FLT_MAX
    cdef int lane
    for lane in range(cols):
        set_real(map, m, lane, lowest if map.exponential else 0.0)
        set_real(map, l, lane, 0.0)


cdef void absorb_keys(const Map *map, const Rows *rows, Py_ssize_t first_tile,
                      Py_ssize_t tiles, Py_ssize_t begin, Py_ssize_t end,
                      const Scratch *scratch, Part *part) noexcept nogil:
    """Sum the features of some tiles over the keys [begin, end).

    The tiles' states are kept in `part` as the tiles have them while the keys go by; the item
    of the first tile also sums the values and counts the keys.
    """
    cdef const rv_softmax_tiles *t = map.reals
    cdef Py_ssize_t start = begin, stop, tile, j, d, row = map.dim_v * t.real
    cdef Keys keys
    cdef int cols, nk, lane, lanes
    cdef const char *factor
    cdef char *m
    cdef char *l
    cdef char *o
    for tile in range(first_tile, first_tile + tiles):
        cols = tile_cols(map, tile)
        start_lanes(map, part.tops + tile * t.cols * t.real,
                    part.weights + tile * t.cols * t.real, cols)
        memset(part.rows + tile * t.cols * row, 0, cols * row)
    if first_tile == 0:
        memset(part.value_sum, 0, map.dim_v * sizeof(double))
        part.count[0] = 0
    while start < end:
        stop = min(end, start + chunk_keys(map))
        load_keys(map, rows, start, stop, scratch, &keys)
        start = stop
        if first_tile == 0:
            map.linear.column_sums(keys.values, keys.ldv, keys.count, map.dim_v,
                                   scratch.column)
            for d in range(map.dim_v):
                part.value_sum[d] += real_at(map, scratch.column, d)
            part.count[0] += keys.count
        for tile in range(first_tile, first_tile + tiles):
            cols = tile_cols(map, tile)
            m = part.tops + tile * t.cols * t.real
            l = part.weights + tile * t.cols * t.real
            o = part.rows + tile * t.cols * row
            j = 0
            while j < keys.count:
                nk = <int> min(<Py_ssize_t> t.key_tile, keys.count - j)
                t.scores(packed_tile(map, tile), cols, keys.keys + j * keys.ldk * t.real,
                         keys.ldk, nk, map.dim, scratch.s)
                if map.exponential:
                    map.linear.subtract(scratch.s, nk, cols, keys.shift + j * t.real)
                    t.update(scratch.s, nk, cols, m, l, o, map.dim_v)
                else:
                    factor = NULL
                    if keys.shift != NULL:
                        factor = keys.shift + j * t.real
                    map.linear.activate(scratch.s, nk, cols, map.elu, map.epsilon, factor, l)
                t.accumulate(scratch.s, cols, keys.values + j * keys.ldv * t.real, keys.ldv,
                             nk, map.dim_v, o)
                j += nk
    # Lanes become rows, as they are: what `finish` divides by is 1.
    for lane in range(t.cols):
        set_real(map, scratch.ones, lane, 1.0)
    for tile in range(first_tile, first_tile + tiles):
        cols = tile_cols(map, tile)
        lanes = <int> min(<Py_ssize_t> cols, map.features - tile * t.cols)
        o = part.rows + tile * t.cols * row
        memcpy(scratch.o, o, cols * row)
        for lane in range(lanes):
            scratch.outs[lane] = o + lane * row
        t.finish(scratch.o, scratch.ones, scratch.ones, cols, lanes, map.dim_v, scratch.outs,
                 NULL)


cdef inline void add_row(const Map *map, double *total, double own, const char *row,
                         double weight) noexcept nogil:
    """total = own * total + weight * row"""
    cdef Py_ssize_t d
    if map.reals.real == sizeof(double):
        for d in range(map.dim_v):
            total[d] = own * total[d] + weight * (<const double *> row)[d]
    else:
        for d in range(map.dim_v):
            total[d] = own * total[d] + weight * (<const float *> row)[d]


cdef void fold(const Map *map, const Part *part, const Sums *sums) noexcept nogil:
    """Add a part to the state of a head."""
    cdef Py_ssize_t i, d
    cdef double top = sums.stabiliser[0], own = 1.0, weight = 1.0
    if part.count[0] == 0:
        return
    if map.exponential:
        for i in range(map.features):
            top = max(top, real_at(map, part.tops, i) * LN2)
        own = exp(sums.stabiliser[0] - top) if sums.count[0] > 0 else 0.0
    for i in range(map.features):
        if map.exponential:
            weight = exp(real_at(map, part.tops, i) * LN2 - top)
        add_row(map, sums.numerator + i * map.dim_v, own,
                part.rows + i * map.dim_v * map.reals.real, weight)
        sums.denominator[i] = (own * sums.denominator[i]
                               + weight * real_at(map, part.weights, i))
    for d in range(map.dim_v):
        sums.value_sum[d] += part.value_sum[d]
    sums.count[0] += part.count[0]
    sums.stabiliser[0] = top


cdef void fold_sums(const Map *map, const Sums *other, const Sums *sums) noexcept nogil:
    """Add the state of other keys to the state of a head."""
    cdef Py_ssize_t i
    cdef double top = max(sums.stabiliser[0], other.stabiliser[0])
    cdef double own = 1.0, weight = 1.0
    if other.count[0] == 0:
        return
    if sums.count[0] > 0:
        own = exp(sums.stabiliser[0] - top)
    weight = exp(other.stabiliser[0] - top)
    for i in range(map.features * map.dim_v):
        sums.numerator[i] = own * sums.numerator[i] + weight * other.numerator[i]
    for i in range(map.features):
        sums.denominator[i] = own * sums.denominator[i] + weight * other.denominator[i]
    for i in range(map.dim_v):
        sums.value_sum[i] += other.value_sum[i]
    sums.count[0] += other.count[0]
    sums.stabiliser[0] = top


cdef inline void share_row(const Map *map, const double *numerator, double denominator,
                           const double *epsilon, char *out, double *total) noexcept nogil:
    """out = [numerator, denominator] + epsilon, added to total"""
    cdef Py_ssize_t d, width = map.dim_v
    cdef double x
    if map.reals.real == sizeof(double):
        for d in range(width):
            x = numerator[d] + epsilon[d]
            total[d] += x
            (<double *> out)[d] = x
    else:
        for d in range(width):
            x = numerator[d] + epsilon[d]
            total[d] += x
            (<float *> out)[d] = <float> x
    x = denominator + epsilon[width]
    total[width] += x
    set_real(map, out, width, x)


cdef void prepare(const Map *map, const Sums *sums, Reader *reader) noexcept nogil:
    """Make of a state what queries read."""
    cdef Py_ssize_t width = map.dim_v + 1, i, d
    cdef double epsilon = map.epsilon if map.exponential else 0.0
    cdef double *added = reader.work
    cdef double *total = reader.work + width
    for d in range(map.dim_v):
        # 0 times a sum that is infinite would be NaN.
        added[d] = epsilon * sums.value_sum[d] if map.exponential else 0.0
    added[map.dim_v] = epsilon * sums.count[0]
    memset(total, 0, width * sizeof(double))
    for i in range(map.features):
        share_row(map, sums.numerator + i * map.dim_v, sums.denominator[i], added,
                  reader.rows + i * width * map.reals.real, total)
    for d in range(width):
        set_real(map, reader.shares, d, epsilon * total[d])
    reader.stabiliser[0] = sums.stabiliser[0]


cdef double query_shift(const Map *map, const char *query) noexcept nogil:
    """What the norm of a query adds to L."""
    cdef double norm
    if not map.exponential:
        return 0.0
    map.norms.square_norms(query, 0, 1, map.dim, 0.0, &norm)
    return -0.5 * map.scale * map.scale * norm


cdef void read_rows(const Map *map, const Rows *rows, const Reader *reader, Py_ssize_t start,
                    Py_ssize_t stop, const Scratch *scratch) noexcept nogil:
    """Output and L of the query rows [start, stop)."""
    cdef const rv_softmax_tiles *t = map.reals
    cdef Py_ssize_t width = map.dim_v + 1, row = start, i
    cdef int cols, lanes, lane, count
    cdef double shift
    cdef char *total = scratch.o
    cdef char *norm
    for lane in range(t.cols):
        set_real(map, scratch.ones, lane, 1.0)
    while row < stop:
        lanes = <int> min(<Py_ssize_t> t.cols, stop - row)
        cols = t.lanes if lanes <= t.lanes else t.cols
        norm = total + map.dim_v * cols * t.real
        for lane in range(cols):
            scratch.rows[lane] = rows.q + (row + min(lane, lanes - 1)) * rows.q_row
        map.stored.pack(scratch.rows, cols, map.dim,
                        map.scale * LOG2E if map.exponential else map.scale, scratch.qt)
        start_lanes(map, scratch.m, scratch.l, cols)
        memset(total, 0, width * cols * t.real)
        i = 0
        while i < map.features:
            count = <int> min(<Py_ssize_t> t.key_tile, map.features - i)
            t.scores(scratch.qt, cols, map.projection + i * map.dim * t.real, map.dim, count,
                     map.dim, scratch.s)
            if map.exponential:
                t.update(scratch.s, count, cols, scratch.m, scratch.l, total, width)
            else:
                map.linear.activate(scratch.s, count, cols, map.elu, map.epsilon, NULL, NULL)
            t.accumulate(scratch.s, cols, reader.rows + i * width * t.real, width, count,
                         width, total)
            i += count
        if map.exponential:
            map.linear.mix(total, width, cols, scratch.ones, scratch.ones, reader.shares)
        for lane in range(lanes):
            scratch.outs[lane] = rows.out + (row + lane) * rows.out_row
            if rows.lse != NULL:
                scratch.lses[lane] = rows.lse + (row + lane) * rows.lse_row
                shift = log(map.gain)
                if map.exponential:
                    shift += query_shift(map, <const char *> scratch.rows[lane])
                    shift += reader.stabiliser[0]
                set_real(map, scratch.m, lane,
                         real_at(map, scratch.m, lane) + shift * LOG2E)
        map.stored.finish(total, scratch.m, norm, cols, lanes, map.dim_v, scratch.outs,
                          scratch.lses if rows.lse != NULL else NULL)
        row += lanes
