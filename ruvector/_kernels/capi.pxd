"""The public cimport surface: attention on raw pointers, without the GIL, from any thread.

Functions are only ever added. They return RUVECTOR_OK or a negative code, never raise, and
allocate nothing that outlives the call. docs/embedding.md describes arrays and options;
compile with the folder that ``ruvector.get_include()`` names.
"""


cdef extern from "ruvector_abi.h" nogil:
    const int RUVECTOR_ABI_VERSION
    const int RUVECTOR_OK
    const int RUVECTOR_ERROR_NULL
    const int RUVECTOR_ERROR_SIZE
    const int RUVECTOR_ERROR_DTYPE
    const int RUVECTOR_ERROR_STRIDE
    const int RUVECTOR_ERROR_OPTION
    const int RUVECTOR_ERROR_MEMORY
    const int RUVECTOR_ERROR_ABI
    const int RUVECTOR_ERROR_IMPORT
    const int RUVECTOR_F32
    const int RUVECTOR_F64
    const int RUVECTOR_F16
    const int RUVECTOR_BF16
    const int RUVECTOR_HEADS_FIRST
    const int RUVECTOR_ROWS_FIRST

    ctypedef struct ruvector_attention_args:
        size_t size
        int dtype, threads
        ptrdiff_t batch, heads, kv_heads, queries, keys, dim, value_dim
        const void *query
        const void *key
        const void *value
        void *out
        void *lse
        ptrdiff_t query_strides[3]
        ptrdiff_t key_strides[3]
        ptrdiff_t value_strides[3]
        ptrdiff_t out_strides[3]
        ptrdiff_t lse_strides[3]
        double scale, softcap
        int causal, bottom_right
        ptrdiff_t window_left, window_right, sink_tokens
        const void *mask
        ptrdiff_t mask_strides[4]
        const void *bias
        ptrdiff_t bias_strides[4]
        const void *sink_logits
        const void *alibi_slopes

    ctypedef struct ruvector_merge_args:
        size_t size
        int dtype
        ptrdiff_t parts, rows, dim
        const void *outputs
        const void *lses
        void *out
        void *lse
        ptrdiff_t outputs_strides[2]
        ptrdiff_t lses_strides[2]
        ptrdiff_t out_stride, lse_stride

    ctypedef struct ruvector_api:
        size_t size
        int abi_version
        const char *version
        int (*attention)(const ruvector_attention_args *args) noexcept nogil
        int (*attention_layout)(ruvector_attention_args *args, int layout) noexcept nogil
        int (*merge)(const ruvector_merge_args *args) noexcept nogil
        const char *(*message)(int status) noexcept nogil
        const char *(*isa)() noexcept nogil

    void attention_init "ruvector_attention_init"(ruvector_attention_args *args)
    void merge_init "ruvector_merge_init"(ruvector_merge_args *args)


cdef int attention(const ruvector_attention_args *args) noexcept nogil
cdef int attention_layout(ruvector_attention_args *args, int layout) noexcept nogil
cdef int merge(const ruvector_merge_args *args) noexcept nogil
cdef const char *message(int status) noexcept nogil
cdef const char *isa() noexcept nogil
