"""Causal linear attention of one head, in blocks of as many positions as a tile has lanes.

For a row i of a block, with the prefix maximum s_i of the keys' exponents and s_0 before the
block::

    o_i = 2^(s_0 - s_i) phi(q_i) A + eps |phi(q_i)|_1 V
          + sum_{j <= i in the block} (2^(s_j - s_i) phi(q_i).e_j + eps |phi(q_i)|_1) v_j

where A (the sum of e^t v^T) and V (that of v) are those of the prefix and e_j are the
exponentials of key j relative to its own s_j: no factor exceeds 1. The products of a block
are one eighth of the work at 256 features. Memory: the features of two blocks and A.
"""

from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport INFINITY, exp2, log
from libc.string cimport memset

from ruvector._kernels._dispatch cimport rv_softmax_tiles
from ruvector._kernels._features cimport (
    Keys, Map, Rows, Scratch, feature_tiles, load_keys, packed_tile, query_shift, real_at,
    set_real, start_lanes, take, tile_cols,
)

cdef double LOG2E = 1.4426950408889634


cdef inline Py_ssize_t lanes_bytes(const Map *map) noexcept nogil:
    return map.reals.cols * map.reals.real


cdef inline char *prefix_tile(const Map *map, const Prefix *prefix,
                              Py_ssize_t tile) noexcept nogil:
    return prefix.sums + tile * (map.dim_v + 1) * lanes_bytes(map)


cdef inline char *key_tile(const Map *map, const CausalScratch *causal,
                           Py_ssize_t tile) noexcept nogil:
    return causal.phi_keys + tile * map.reals.cols * lanes_bytes(map)


cdef inline char *query_tile(const Map *map, const CausalScratch *causal, int cols,
                             Py_ssize_t tile) noexcept nogil:
    return causal.phi_queries + tile * map.reals.cols * cols * map.reals.real


cdef inline int tile_width(const Map *map, Py_ssize_t tile) noexcept nogil:
    """Features of a tile; it may have more lanes."""
    return <int> min(<Py_ssize_t> map.reals.cols, map.features - tile * map.reals.cols)


cdef Py_ssize_t lay_out_prefix(const Map *map, Py_ssize_t memory,
                               Prefix *prefix) noexcept nogil:
    """Place an empty prefix at an aligned address; returns its end, also without memory."""
    cdef Py_ssize_t at = memory
    prefix.sums = take(&at, feature_tiles(map) * (map.dim_v + 1) * lanes_bytes(map))
    prefix.values = <double *> take(&at, (map.dim_v + 1) * sizeof(double))
    prefix.top = 0.0
    if map.exponential:
        prefix.top = -DBL_MAX if map.reals.real == sizeof(double) else -FLT_MAX
    if memory != 0:
        memset(prefix.sums, 0, at - memory)
    return at


cdef Py_ssize_t lay_out_causal(const Map *map, Py_ssize_t memory,
                               CausalScratch *causal) noexcept nogil:
    """Place the buffers of one thread at an aligned address; returns the end of them."""
    cdef const rv_softmax_tiles *t = map.reals
    cdef Py_ssize_t lanes = lanes_bytes(map), at = memory
    causal.phi_keys = take(&at, feature_tiles(map) * t.cols * lanes)
    causal.phi_queries = take(&at, map.features * lanes)
    causal.products = take(&at, t.cols * lanes)
    causal.weighed = take(&at, t.cols * (map.dim_v + 1) * t.real)
    causal.key_tops = take(&at, lanes)
    causal.column = take(&at, (map.dim_v + 1) * t.real)
    causal.factor = take(&at, lanes)
    causal.share = take(&at, lanes)
    causal.top = take(&at, lanes)
    causal.count = take(&at, lanes)
    return at


cdef double key_features(const Map *map, const Keys *keys, double top, const Scratch *scratch,
                         const CausalScratch *causal) noexcept nogil:
    """Features of the keys of a block, and the prefix maxima; returns the last of these."""
    cdef const rv_softmax_tiles *t = map.reals
    cdef Py_ssize_t tile
    cdef int cols, j
    for j in range(keys.count):
        set_real(map, causal.key_tops, j, top)
    for tile in range(feature_tiles(map)):
        cols = tile_cols(map, tile)
        t.scores(packed_tile(map, tile), cols, keys.keys, keys.ldk, keys.count, map.dim,
                 key_tile(map, causal, tile))
        if map.exponential:
            map.linear.subtract(key_tile(map, causal, tile), keys.count, cols, keys.shift)
            map.linear.row_maxima(key_tile(map, causal, tile), keys.count, cols,
                                  causal.key_tops)
        else:
            map.linear.activate(key_tile(map, causal, tile), keys.count, cols, map.elu,
                                map.epsilon, keys.shift, NULL)
    if not map.exponential:
        return top
    for j in range(keys.count):
        top = max(top, real_at(map, causal.key_tops, j))
        set_real(map, causal.key_tops, j, top)
    for tile in range(feature_tiles(map)):
        map.backward.exp(key_tile(map, causal, tile), keys.count, tile_cols(map, tile),
                         causal.key_tops, 1)
    return top


cdef void query_features(const Map *map, const Rows *rows, Py_ssize_t start, int lanes,
                         int cols, const Scratch *scratch,
                         const CausalScratch *causal) noexcept nogil:
    """Features of the query rows from `start` on, and epsilon times their sums in `share`."""
    cdef const rv_softmax_tiles *t = map.reals
    cdef int lane
    for lane in range(cols):
        scratch.rows[lane] = rows.q + (start + min(lane, lanes - 1)) * rows.q_row
        set_real(map, causal.share, lane, 0.0)
    map.stored.pack(scratch.rows, cols, map.dim,
                    map.scale * LOG2E if map.exponential else map.scale, scratch.qt)
    t.scores(scratch.qt, cols, map.projection, map.dim, <int> map.features, map.dim,
             causal.phi_queries)
    start_lanes(map, scratch.m, scratch.l, cols)
    if not map.exponential:
        map.linear.activate(causal.phi_queries, <int> map.features, cols, map.elu,
                            map.epsilon, NULL, NULL)
        return
    t.update(causal.phi_queries, <int> map.features, cols, scratch.m, scratch.l, NULL, 0)
    # What is positive is not changed but for epsilon.
    map.linear.activate(causal.phi_queries, <int> map.features, cols, 0, map.epsilon, NULL,
                        causal.share)
    for lane in range(cols):
        set_real(map, causal.share, lane, map.epsilon * real_at(map, causal.share, lane))


cdef void sum_products(const Map *map, Py_ssize_t tile, const char *features, int cols,
                       Py_ssize_t count, char *out, const CausalScratch *causal) noexcept nogil:
    """out[count][cols] (+)= features of one tile times those of the queries"""
    cdef char *queries = query_tile(map, causal, cols, tile)
    if tile == 0:
        map.reals.scores(queries, cols, features, tile_cols(map, tile), <int> count,
                         tile_width(map, tile), out)
    else:
        map.linear.add_scores(queries, cols, features, tile_cols(map, tile), <int> count,
                              tile_width(map, tile), out)


cdef void attend_block(const Map *map, const Rows *rows, const Prefix *prefix,
                       const Keys *keys, Py_ssize_t begin, Py_ssize_t end,
                       const Scratch *scratch, const CausalScratch *causal) noexcept nogil:
    """Output and L of the queries at the positions [begin, end)."""
    cdef const rv_softmax_tiles *t = map.reals
    cdef Py_ssize_t first = rows.lk - rows.lq, from_ = max(begin, first), position = begin
    cdef Py_ssize_t tile, d
    cdef int lanes = <int> (end - from_), lane, seen = 0
    cdef int cols = t.lanes if lanes <= t.lanes else t.cols
    cdef double top, shift
    cdef char *total = scratch.o
    cdef char *norm = total + map.dim_v * cols * t.real
    query_features(map, rows, from_ - first, lanes, cols, scratch, causal)
    for tile in range(feature_tiles(map)):
        sum_products(map, tile, prefix_tile(map, prefix, tile), cols, map.dim_v + 1, total,
                     causal)
        if keys.count > 0:
            sum_products(map, tile, key_tile(map, causal, tile), cols, keys.count,
                         causal.products, causal)
    for lane in range(cols):
        while lane < lanes and position <= from_ + lane:
            if rows.bias == NULL or real_at(map, rows.bias, position) != -INFINITY:
                seen += 1
            position += 1
        top = prefix.top
        if map.exponential and seen > 0:
            top = real_at(map, causal.key_tops, seen - 1)
        set_real(map, causal.count, lane, seen)
        set_real(map, causal.top, lane, top)
        set_real(map, causal.factor, lane, exp2(prefix.top - top))
        if lane < lanes:
            scratch.outs[lane] = rows.out + (from_ - first + lane) * rows.out_row
        if lane < lanes and rows.lse != NULL:
            scratch.lses[lane] = rows.lse + (from_ - first + lane) * rows.lse_row
            shift = log(map.gain) + query_shift(map, <const char *> scratch.rows[lane])
            set_real(map, scratch.m, lane,
                     real_at(map, scratch.m, lane) + top + shift * LOG2E)
    if map.exponential:
        for d in range(map.dim_v + 1):
            set_real(map, causal.column, d, prefix.values[d])
        map.linear.mix(total, map.dim_v + 1, cols, causal.factor, causal.share, causal.column)
    map.linear.causal(causal.products, keys.count, cols,
                      causal.key_tops if map.exponential else NULL, causal.top, causal.share,
                      causal.count, norm)
    t.accumulate(causal.products, cols, keys.values, keys.ldv, keys.count, map.dim_v, total)
    map.stored.finish(total, scratch.m, norm, cols, lanes, map.dim_v, scratch.outs,
                      scratch.lses if rows.lse != NULL else NULL)


cdef void extend_prefix(const Map *map, Prefix *prefix, const Keys *keys, double top,
                        const CausalScratch *causal) noexcept nogil:
    """Add the keys of a block to the prefix, `top` being the maximum with them."""
    cdef const rv_softmax_tiles *t = map.reals
    cdef Py_ssize_t tile, d, width = map.dim_v + 1
    cdef double fall = exp2(prefix.top - top)
    cdef char *sums
    cdef int cols, j
    map.linear.column_sums(keys.values, keys.ldv, keys.count, map.dim_v, causal.column)
    for d in range(map.dim_v):
        prefix.values[d] += real_at(map, causal.column, d)
    prefix.values[map.dim_v] += keys.count
    if map.exponential:
        for j in range(keys.count):
            set_real(map, causal.key_tops, j, exp2(real_at(map, causal.key_tops, j) - top))
    map.linear.weigh(keys.values, keys.ldv, keys.count, map.dim_v,
                     causal.key_tops if map.exponential else NULL, causal.weighed)
    for tile in range(feature_tiles(map)):
        cols = tile_cols(map, tile)
        sums = prefix_tile(map, prefix, tile)
        if fall != 1.0:
            t.multiply(sums, <int> width, cols, fall)
        t.accumulate(key_tile(map, causal, tile), cols, causal.weighed, width, keys.count,
                     width, sums)
    prefix.top = top


cdef void attend_positions(const Map *map, const Rows *rows, Prefix *prefix,
                           Py_ssize_t begin, Py_ssize_t end, const Scratch *scratch,
                           const CausalScratch *causal) noexcept nogil:
    """Walk the positions [begin, end), `prefix` being what comes before them."""
    cdef Py_ssize_t start = begin, stop
    cdef double top
    cdef Keys keys
    while start < end:
        stop = min(end, start + map.reals.cols)
        load_keys(map, rows, start, stop, scratch, &keys)
        if not map.reals.all_finite(keys.values, keys.ldv, keys.count, map.dim_v):
            # 0 * NaN would reach rows before it; a single position has none.
            stop = start + 1
            load_keys(map, rows, start, stop, scratch, &keys)
        top = key_features(map, &keys, prefix.top, scratch, causal)
        if stop > rows.lk - rows.lq:
            attend_block(map, rows, prefix, &keys, start, stop, scratch, causal)
        if keys.count > 0:
            extend_prefix(map, prefix, &keys, top, causal)
        start = stop
