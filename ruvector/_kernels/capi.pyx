"""The engine for other compiled code: checks of raw arguments, and the table behind ruvector.h.

What a facade does for Python callers is done here for pointers: everything that can be told
from the numbers is checked before the engine sees it, and answered with a code. Nothing needs
the GIL or a Python thread state. Memory: that of the engine, and one record a batch entry.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport isfinite, sqrt
from libc.stdint cimport INT32_MAX, PTRDIFF_MAX, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ruvector._kernels cimport _dispatch
from ruvector._kernels._dispatch cimport RV_BF16, RV_F16, RV_F32, RV_F64
from ruvector._kernels._engine cimport compute
from ruvector._kernels._merge cimport States, merge_states
from ruvector._kernels._problem cimport Call, Segment, start_call

from ruvector import _kernels
from ruvector._version import __version__

# Refuses where compiled kernels are ruled out, with the reason.
_kernels._load_native()

# Lengths beyond these overflow sums of the engine; no memory holds such arrays.
cdef int64_t MOST_ROWS = <int64_t> 1 << 40
cdef int64_t MOST_OTHER = INT32_MAX
# Windows are added to positions.
cdef int64_t MOST_WINDOW = <int64_t> 1 << 62


cdef inline int storage(int dtype) noexcept nogil:
    """Index of a storage type in the dispatch table, or -1."""
    if dtype == RUVECTOR_F32:
        return RV_F32
    if dtype == RUVECTOR_F64:
        return RV_F64
    if dtype == RUVECTOR_F16:
        return RV_F16
    if dtype == RUVECTOR_BF16:
        return RV_BF16
    return -1


cdef inline bint within(int64_t size, int64_t most) noexcept nogil:
    return 0 <= size <= most


cdef int check_array(const void *array, const ptrdiff_t *strides, const ptrdiff_t *lengths,
                     int axes, ptrdiff_t last, ptrdiff_t item) noexcept nogil:
    """Is there an array, and are all its elements aligned? An empty one may be null.

    ``last`` is the length of a last axis that is contiguous, 1 where there is none.
    """
    cdef bint empty = last == 0, aligned = <size_t> array % <size_t> item == 0
    cdef int axis
    for axis in range(axes):
        if lengths[axis] == 0:
            empty = True
        elif lengths[axis] > 1 and strides[axis] % item != 0:
            aligned = False
    if empty:
        return RUVECTOR_OK
    if array == NULL:
        return RUVECTOR_ERROR_NULL
    return RUVECTOR_OK if aligned else RUVECTOR_ERROR_STRIDE


cdef int check_sizes(const ruvector_attention_args *a) noexcept nogil:
    if not (within(a.batch, MOST_OTHER) and within(a.heads, MOST_OTHER)
            and within(a.kv_heads, MOST_OTHER) and within(a.dim, MOST_OTHER)
            and within(a.value_dim, MOST_OTHER) and within(a.queries, MOST_ROWS)
            and within(a.keys, MOST_ROWS)):
        return RUVECTOR_ERROR_SIZE
    if <double> a.batch * <double> a.heads * <double> a.queries > <double> MOST_WINDOW:
        return RUVECTOR_ERROR_SIZE
    if a.heads > 0 and (a.kv_heads == 0 or a.heads % a.kv_heads != 0):
        return RUVECTOR_ERROR_SIZE
    return RUVECTOR_OK


cdef int check_options(const ruvector_attention_args *a) noexcept nogil:
    if (a.threads < 1 or not isfinite(a.scale) or not isfinite(a.softcap) or a.softcap < 0
            or a.window_left < -1 or a.window_right < -1 or a.sink_tokens < 0):
        return RUVECTOR_ERROR_OPTION
    return RUVECTOR_OK


cdef int check_arrays(const ruvector_attention_args *a, ptrdiff_t item,
                      ptrdiff_t real) noexcept nogil:
    cdef ptrdiff_t[4] scores = [a.batch, a.heads, a.queries, a.keys]
    cdef ptrdiff_t[3] memory = [a.batch, a.kv_heads, a.keys]
    cdef ptrdiff_t[1] each = [a.heads]
    cdef ptrdiff_t[1] packed = [real]
    cdef int status = check_array(a.query, a.query_strides, scores, 3, a.dim, item)
    if status == RUVECTOR_OK:
        status = check_array(a.key, a.key_strides, memory, 3, a.dim, item)
    if status == RUVECTOR_OK:
        status = check_array(a.value, a.value_strides, memory, 3, a.value_dim, item)
    if status == RUVECTOR_OK:
        status = check_array(a.out, a.out_strides, scores, 3, a.value_dim, item)
    if status == RUVECTOR_OK and a.lse != NULL:
        status = check_array(a.lse, a.lse_strides, scores, 3, 1, real)
    if status == RUVECTOR_OK and a.bias != NULL:
        status = check_array(a.bias, a.bias_strides, scores, 4, 1, real)
    if status == RUVECTOR_OK and a.sink_logits != NULL:
        status = check_array(a.sink_logits, packed, each, 1, 1, real)
    if status == RUVECTOR_OK and a.alibi_slopes != NULL:
        status = check_array(a.alibi_slopes, packed, each, 1, 1, real)
    return status


cdef void fill_call(const ruvector_attention_args *a, int dtype, Call *call) noexcept nogil:
    start_call(call, _dispatch.tiles(), dtype, <int> a.heads, <int> a.kv_heads)
    call.dim, call.dim_v = a.dim, a.value_dim
    call.q_head, call.q_row = a.query_strides[1], a.query_strides[2]
    call.k_head, call.k_row = a.key_strides[1], a.key_strides[2]
    call.v_head, call.v_row = a.value_strides[1], a.value_strides[2]
    call.out_head, call.out_row = a.out_strides[1], a.out_strides[2]
    call.lse_head, call.lse_row = a.lse_strides[1], a.lse_strides[2]
    call.bias_head, call.bias_row = a.bias_strides[1], a.bias_strides[2]
    call.bias_key = a.bias_strides[3]
    call.mask_head, call.mask_row = a.mask_strides[1], a.mask_strides[2]
    call.mask_key = a.mask_strides[3]
    call.scale = a.scale if a.scale != 0 else 1 / sqrt(<double> max(a.dim, 1))
    call.softcap = a.softcap
    call.causal = a.causal != 0
    call.left = min(<int64_t> a.window_left, MOST_WINDOW)
    call.right = min(<int64_t> a.window_right, MOST_WINDOW)
    call.num_sinks = a.sink_tokens
    call.slopes = <const char *> a.alibi_slopes
    call.sink_logits = <const char *> a.sink_logits


cdef void fill_segment(const ruvector_attention_args *a, ptrdiff_t b,
                       Segment *segment) noexcept nogil:
    memset(segment, 0, sizeof(Segment))
    segment.lq, segment.lk = a.queries, a.keys
    segment.offset = a.keys - a.queries if a.bottom_right else 0
    segment.q = <const char *> a.query + b * a.query_strides[0]
    segment.k = <const char *> a.key + b * a.key_strides[0]
    segment.v = <const char *> a.value + b * a.value_strides[0]
    segment.out = <char *> a.out + b * a.out_strides[0]
    if a.lse != NULL:
        segment.lse = <char *> a.lse + b * a.lse_strides[0]
    if a.bias != NULL:
        segment.bias = <const char *> a.bias + b * a.bias_strides[0]
    if a.mask != NULL:
        segment.mask = <const char *> a.mask + b * a.mask_strides[0]


cdef int attention(const ruvector_attention_args *args) noexcept nogil:
    """Compute the attention state (o, L) of every query row."""
    cdef Call call
    cdef Segment *segments
    cdef ptrdiff_t b
    cdef int status, dtype
    if args == NULL:
        return RUVECTOR_ERROR_NULL
    if args.size != sizeof(ruvector_attention_args):
        return RUVECTOR_ERROR_ABI
    dtype = storage(args.dtype)
    if dtype < 0:
        return RUVECTOR_ERROR_DTYPE
    status = check_sizes(args)
    if status == RUVECTOR_OK:
        status = check_options(args)
    if status != RUVECTOR_OK:
        return status
    fill_call(args, dtype, &call)
    status = check_arrays(args, call.tiles.item, call.tiles.real)
    if status != RUVECTOR_OK or args.batch == 0 or args.heads == 0 or args.queries == 0:
        return status
    segments = <Segment *> malloc(args.batch * sizeof(Segment))
    if segments == NULL:
        return RUVECTOR_ERROR_MEMORY
    for b in range(args.batch):
        fill_segment(args, b, segments + b)
    status = compute(&call, segments, args.batch, args.threads, False)
    free(segments)
    return RUVECTOR_OK if status == 0 else RUVECTOR_ERROR_MEMORY


cdef bint fits(ptrdiff_t batch, ptrdiff_t heads, ptrdiff_t rows,
               ptrdiff_t row_bytes) noexcept nogil:
    """Can an array of so many bytes be addressed?"""
    cdef double whole = <double> batch * <double> heads * <double> rows * <double> row_bytes
    return whole < <double> PTRDIFF_MAX


cdef void contiguous(ptrdiff_t *strides, ptrdiff_t heads, ptrdiff_t rows, ptrdiff_t row_bytes,
                     bint rows_first) noexcept nogil:
    strides[0] = heads * rows * row_bytes
    strides[1] = row_bytes if rows_first else rows * row_bytes
    strides[2] = heads * row_bytes if rows_first else row_bytes


cdef int attention_layout(ruvector_attention_args *args, int layout) noexcept nogil:
    """Write the strides of contiguous arrays; L always has the axes (batch, head, row)."""
    cdef ptrdiff_t item, real, widest
    cdef int dtype, status
    cdef bint rows_first = layout == RUVECTOR_ROWS_FIRST
    if args == NULL:
        return RUVECTOR_ERROR_NULL
    if args.size != sizeof(ruvector_attention_args):
        return RUVECTOR_ERROR_ABI
    dtype = storage(args.dtype)
    if dtype < 0:
        return RUVECTOR_ERROR_DTYPE
    if layout not in (RUVECTOR_HEADS_FIRST, RUVECTOR_ROWS_FIRST):
        return RUVECTOR_ERROR_OPTION
    status = check_sizes(args)
    if status != RUVECTOR_OK:
        return status
    item = _dispatch.tiles().softmax[dtype].item
    real = _dispatch.tiles().softmax[dtype].real
    widest = max(max(args.dim, args.value_dim) * item, real)
    if not (fits(args.batch, args.heads, args.queries, widest)
            and fits(args.batch, args.kv_heads, args.keys, widest)):
        return RUVECTOR_ERROR_SIZE
    contiguous(args.query_strides, args.heads, args.queries, args.dim * item, rows_first)
    contiguous(args.key_strides, args.kv_heads, args.keys, args.dim * item, rows_first)
    contiguous(args.value_strides, args.kv_heads, args.keys, args.value_dim * item, rows_first)
    contiguous(args.out_strides, args.heads, args.queries, args.value_dim * item, rows_first)
    contiguous(args.lse_strides, args.heads, args.queries, real, False)
    return RUVECTOR_OK


cdef int merge(const ruvector_merge_args *args) noexcept nogil:
    """Combine the attention states of disjoint key sets, in index order."""
    cdef const _dispatch.rv_decode_tiles *tiles
    cdef States states
    cdef ptrdiff_t[2] lengths
    cdef int dtype, status
    if args == NULL:
        return RUVECTOR_ERROR_NULL
    if args.size != sizeof(ruvector_merge_args):
        return RUVECTOR_ERROR_ABI
    dtype = storage(args.dtype)
    if dtype < 0:
        return RUVECTOR_ERROR_DTYPE
    if not (within(args.parts, MOST_OTHER) and within(args.rows, MOST_ROWS)
            and within(args.dim, MOST_OTHER)):
        return RUVECTOR_ERROR_SIZE
    tiles = _dispatch.tiles().decode[dtype]
    lengths[0], lengths[1] = args.parts, args.rows
    status = check_array(args.outputs, args.outputs_strides, lengths, 2, args.dim, tiles.item)
    if status == RUVECTOR_OK:
        status = check_array(args.lses, args.lses_strides, lengths, 2, 1, tiles.real)
    if status == RUVECTOR_OK:
        status = check_array(args.out, &args.out_stride, lengths + 1, 1, args.dim, tiles.item)
    if status == RUVECTOR_OK:
        status = check_array(args.lse, &args.lse_stride, lengths + 1, 1, 1, tiles.real)
    if status != RUVECTOR_OK:
        return status
    memset(&states, 0, sizeof(States))
    states.parts, states.rows, states.dim_v = args.parts, args.rows, args.dim
    states.outputs, states.lses = <const char *> args.outputs, <const char *> args.lses
    states.output_part, states.output_row = args.outputs_strides[0], args.outputs_strides[1]
    states.lse_part, states.lse_row = args.lses_strides[0], args.lses_strides[1]
    states.out, states.lse = <char *> args.out, <char *> args.lse
    states.out_row, states.merged_row = args.out_stride, args.lse_stride
    return RUVECTOR_OK if merge_states(tiles, &states) == 0 else RUVECTOR_ERROR_MEMORY


cdef const char *message(int status) noexcept nogil:
    """What a status means, in English."""
    if status == RUVECTOR_OK:
        return "success"
    if status == RUVECTOR_ERROR_NULL:
        return "a pointer that is needed is null"
    if status == RUVECTOR_ERROR_SIZE:
        return "a size is negative or too large, or heads is not a multiple of kv_heads"
    if status == RUVECTOR_ERROR_DTYPE:
        return "unknown dtype"
    if status == RUVECTOR_ERROR_STRIDE:
        return "a pointer or stride is not a multiple of the element's size"
    if status == RUVECTOR_ERROR_OPTION:
        return "an option is outside its domain"
    if status == RUVECTOR_ERROR_MEMORY:
        return "out of memory"
    if status == RUVECTOR_ERROR_ABI:
        return "compiled for another version of ruvector's C interface than is installed"
    if status == RUVECTOR_ERROR_IMPORT:
        return "ruvector_import() has not succeeded"
    return "unknown status"


cdef const char *isa() noexcept nogil:
    """Name of the instruction set in use."""
    return _dispatch.tiles().isa


ABI_VERSION = RUVECTOR_ABI_VERSION

# Pointers into both live as long as the process.
cdef bytes version = __version__.encode()
cdef ruvector_api table
table.size = sizeof(ruvector_api)
table.abi_version = RUVECTOR_ABI_VERSION
table.version = version
table.attention = attention
table.attention_layout = attention_layout
table.merge = merge
table.message = message
table.isa = isa

_api = PyCapsule_New(&table, "ruvector._kernels.capi._api", NULL)
