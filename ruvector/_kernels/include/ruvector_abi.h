/* Types, constants and defaults of ruvector's C interface; ruvector.h is how to call it.
 *
 * Nothing here needs Python. Structures only ever grow at their end, constants are only ever
 * added; each such release raises RUVECTOR_ABI_VERSION. docs/embedding.md has the rules.
 */
#ifndef RUVECTOR_ABI_H
#define RUVECTOR_ABI_H

#include <stddef.h>
#include <string.h>

#define RUVECTOR_ABI_VERSION 1

#if defined(__cplusplus) || (defined(__STDC_VERSION__) && __STDC_VERSION__ >= 199901L)
#define RUVECTOR_INLINE static inline
#elif defined(__GNUC__) || defined(_MSC_VER)
#define RUVECTOR_INLINE static __inline
#else
#define RUVECTOR_INLINE static
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What every function returns. */
enum {
    RUVECTOR_OK = 0,
    RUVECTOR_ERROR_NULL = -1,   /* a pointer that is needed is null */
    RUVECTOR_ERROR_SIZE = -2,   /* negative, too large, or heads no multiple of kv_heads */
    RUVECTOR_ERROR_DTYPE = -3,  /* not a storage type of this interface */
    RUVECTOR_ERROR_STRIDE = -4, /* a pointer or stride is no multiple of its element */
    RUVECTOR_ERROR_OPTION = -5, /* an option is outside its domain */
    RUVECTOR_ERROR_MEMORY = -6, /* no memory for scratch */
    RUVECTOR_ERROR_ABI = -7,    /* compiled for an interface that is not installed */
    RUVECTOR_ERROR_IMPORT = -8  /* ruvector_import() has not succeeded */
};

/* Storage types. Arithmetic, L, bias, slopes and sink logits are double for RUVECTOR_F64 and
 * float for the others: the compute type. */
enum { RUVECTOR_F32 = 0, RUVECTOR_F64 = 1, RUVECTOR_F16 = 2, RUVECTOR_BF16 = 3 };

/* Contiguous layouts that ruvector_attention_layout() writes strides for. */
enum {
    RUVECTOR_HEADS_FIRST = 0, /* (batch, heads, rows, dim) */
    RUVECTOR_ROWS_FIRST = 1   /* (batch, rows, heads, dim) */
};

/* One attention call. Strides are in bytes, may be zero or negative, and need a value only
 * where their axis is longer than 1; the last axis of query, key, value and out is contiguous. */
typedef struct ruvector_attention_args {
    size_t size; /* of this structure as the caller knows it */
    int dtype;
    int threads; /* at least 1; 1 inside of threads of the caller's */

    ptrdiff_t batch, heads, kv_heads; /* heads is a multiple of kv_heads */
    ptrdiff_t queries, keys;          /* rows of each head */
    ptrdiff_t dim, value_dim;

    const void *query; /* (batch, heads, queries, dim) */
    const void *key;   /* (batch, kv_heads, keys, dim) */
    const void *value; /* (batch, kv_heads, keys, value_dim) */
    void *out;         /* (batch, heads, queries, value_dim) */
    void *lse;         /* (batch, heads, queries) of the compute type, or null */

    ptrdiff_t query_strides[3]; /* batch, head, row */
    ptrdiff_t key_strides[3];
    ptrdiff_t value_strides[3];
    ptrdiff_t out_strides[3];
    ptrdiff_t lse_strides[3];

    double scale;   /* on the dot products; 0 stands for 1 / sqrt(dim) */
    double softcap; /* bound on the scaled dot products; 0 for none */
    int causal;
    int bottom_right; /* the last query stands at the last key, not the first at the first */
    ptrdiff_t window_left, window_right; /* keys seen on each side; -1 for all */
    ptrdiff_t sink_tokens;               /* first keys that are seen outside of the window */

    const void *mask; /* (batch, heads, queries, keys) bytes, 0 hides the key; or null */
    ptrdiff_t mask_strides[4];
    const void *bias; /* the same axes, added to the scores; or null */
    ptrdiff_t bias_strides[4];
    const void *sink_logits;  /* contiguous (heads,), or null */
    const void *alibi_slopes; /* contiguous (heads,), or null */
} ruvector_attention_args;

/* The states (o, L) of `rows` rows over `parts` disjoint sets of keys. Strides as above. */
typedef struct ruvector_merge_args {
    size_t size;
    int dtype; /* of the outputs */

    ptrdiff_t parts, rows, dim;
    const void *outputs; /* (parts, rows, dim) */
    const void *lses;    /* (parts, rows) of the compute type */
    void *out;           /* (rows, dim) */
    void *lse;           /* (rows,) of the compute type */

    ptrdiff_t outputs_strides[2]; /* part, row */
    ptrdiff_t lses_strides[2];
    ptrdiff_t out_stride;
    ptrdiff_t lse_stride;
} ruvector_merge_args;

/* What the installed package offers. */
typedef struct ruvector_api {
    size_t size;
    int abi_version;
    const char *version; /* of the package */
    int (*attention)(const ruvector_attention_args *args);
    int (*attention_layout)(ruvector_attention_args *args, int layout);
    int (*merge)(const ruvector_merge_args *args);
    const char *(*message)(int status);
    const char *(*isa)(void);
} ruvector_api;

/* Write the defaults: one thread, no option, every array null. */
RUVECTOR_INLINE void ruvector_attention_init(ruvector_attention_args *args)
{
    memset(args, 0, sizeof *args);
    args->size = sizeof *args;
    args->threads = 1;
    args->window_left = -1;
    args->window_right = -1;
}

RUVECTOR_INLINE void ruvector_merge_init(ruvector_merge_args *args)
{
    memset(args, 0, sizeof *args);
    args->size = sizeof *args;
}

#ifdef __cplusplus
}
#endif
#endif
