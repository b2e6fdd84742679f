/* Every tile of one instruction set: the templates, once a type. Included by isa_<name>.c
 * after its vec_<name>.h; ends in the tables of that instruction set. */

#include <float.h>
#include <math.h>
#include <string.h>

#include "tiles.h"
#include "blocks.inc.h"
#include "exp2.inc.h"
#include "half.inc.h"

#define RV_NAME__(isa, type, name) rv_##isa##_##type##_##name
#define RV_NAME_(isa, type, name) RV_NAME__(isa, type, name)
#define RV_NAME(type, name) RV_NAME_(RV_ISA, type, name)

#include "distances.inc.h"
#include "quantize.inc.h"

/* ---- float arithmetic: float32, float16, bfloat16 and int8 storage ---------------- */

#define REAL float
#define LOWEST (-FLT_MAX)
#define RT vf
#define RM vfm
#define LANES VF_LANES
#define R(name) vf_##name
#define R_MASK(name) vfm_##name
#define WIDEN(x, part) vf_widen(x, part)
#define T(name) RV_NAME(f32, name)
#include "softmax.inc.h"
#include "graph.inc.h"
#include "linear.inc.h"
#include "optim.inc.h"

#define S(name) RV_NAME(f32, name)
#define ITEM float
#define LOAD vf_load
#define LOAD_N vf_load_n
#define STORE vf_store
#define STORE_N vf_store_n
#include "storage.inc.h"

#define LOW 1e-30
#define HIGH 1e30
#define WIDE_LOAD vd_load_f32
#define WIDE_LOAD_N vd_load_f32_n
#define WIDE_STORE vd_store_f32
#define WIDE_STORE_N vd_store_f32_n
#include "rows.inc.h"

#define WIDENED
#define S(name) RV_NAME(f16, name)
#define ITEM uint16_t
#define LOAD vf_load_f16
#define LOAD_N vf_load_f16_n
#define STORE vf_store_f16
#define STORE_N vf_store_f16_n
#include "storage.inc.h"

#define S(name) RV_NAME(bf16, name)
#define ITEM uint16_t
#define LOAD vf_load_bf16
#define LOAD_N vf_load_bf16_n
#define STORE vf_store_bf16
#define STORE_N vf_store_bf16_n
#include "storage.inc.h"

#define S(name) RV_NAME(i8, name)
#define ITEM int8_t
#define LOAD vf_load_i8
#define LOAD_N vf_load_i8_n
#include "storage.inc.h"
#undef WIDENED

static int RV_NAME(i8, values_finite)(const void *v, ptrdiff_t ldv, int nk, ptrdiff_t dv)
{
    (void)v, (void)ldv, (void)nk, (void)dv;
    return 1;
}

#undef REAL
#undef LOWEST
#undef RT
#undef RM
#undef LANES
#undef R
#undef R_MASK
#undef WIDEN
#undef T

/* ---- double arithmetic ------------------------------------------------------------ */

#define REAL double
#define LOWEST (-DBL_MAX)
#define RT vd
#define RM vdm
#define LANES VD_LANES
#define R(name) vd_##name
#define R_MASK(name) vdm_##name
#define WIDEN(x, part) (x)
#define T(name) RV_NAME(f64, name)
#include "softmax.inc.h"
#include "graph.inc.h"
#include "linear.inc.h"
#include "optim.inc.h"

#define S(name) RV_NAME(f64, name)
#define ITEM double
#define LOAD vd_load
#define LOAD_N vd_load_n
#define STORE vd_store
#define STORE_N vd_store_n
#include "storage.inc.h"

#define LOW 1e-280
#define HIGH 1e280
#define WIDE_LOAD vd_load
#define WIDE_LOAD_N vd_load_n
#define WIDE_STORE vd_store
#define WIDE_STORE_N vd_store_n
#include "rows.inc.h"

/* ---- tables ----------------------------------------------------------------------- */

/* Rows of `type` beside queries and outputs of `own_type`. */
#define RV_ROW_TILES(type, own_type, real_type, lanes_, item_, real_, query_tiles_, load_)    \
    static const rv_softmax_tiles RV_NAME(type, softmax) = {                                  \
        .lanes = lanes_, .cols = RV_VECS * (lanes_), .key_tile = RV_KEY_TILE,                 \
        .query_tiles = query_tiles_, .item = item_, .real = real_,                            \
        .pack = RV_NAME(own_type, pack), .load_keys = load_, .load_values = load_,            \
        .scale_rows = RV_NAME(real_type, scale_rows),                                         \
        .scores = RV_NAME(real_type, scores), .softcap = RV_NAME(real_type, softcap),         \
        .alibi = RV_NAME(real_type, alibi), .add_bias = RV_NAME(real_type, add_bias),         \
        .multiply = RV_NAME(real_type, multiply),                                             \
        .hide_mask = RV_NAME(real_type, hide_mask),                                           \
        .hide_outside = RV_NAME(real_type, hide_outside),                                     \
        .update = RV_NAME(real_type, update), .accumulate = RV_NAME(real_type, accumulate),   \
        .all_finite = RV_NAME(type, values_finite),                                           \
        .accumulate_visible = RV_NAME(real_type, accumulate_visible),                         \
        .finish = RV_NAME(own_type, finish),                                                  \
    };                                                                                        \
    static const rv_decode_tiles RV_NAME(type, decode) = {                                    \
        .lanes = lanes_, .key_tile = 512, .item = item_, .real = real_,                       \
        .load_query = RV_NAME(own_type, load_query),                                          \
        .scores = RV_NAME(type, decode_scores),                                               \
        .multiply = RV_NAME(real_type, row_multiply),                                         \
        .softcap = RV_NAME(real_type, row_softcap), .alibi = RV_NAME(real_type, row_alibi),   \
        .add_bias = RV_NAME(real_type, row_add_bias),                                         \
        .hide_mask = RV_NAME(real_type, row_hide_mask),                                       \
        .hide_outside = RV_NAME(real_type, row_hide_outside),                                 \
        .update = RV_NAME(real_type, rows_update),                                            \
        .accumulate = RV_NAME(type, decode_accumulate),                                       \
        .all_finite = RV_NAME(type, values_finite), .merge = RV_NAME(real_type, row_merge),   \
        .finish = RV_NAME(own_type, decode_finish),                                           \
        .probabilities = RV_NAME(real_type, row_probabilities),                               \
    };

#define RV_TILES(type, real_type, lanes_, item_, real_, query_tiles_, load_)                  \
    RV_ROW_TILES(type, type, real_type, lanes_, item_, real_, query_tiles_, load_)            \
    static const rv_backward_tiles RV_NAME(type, backward) = {                                \
        .row_dot = RV_NAME(type, row_dot), .exp = RV_NAME(real_type, backward_exp),           \
        .scores = RV_NAME(real_type, backward_scores),                                        \
        .softcap = RV_NAME(real_type, backward_softcap),                                      \
        .alibi = RV_NAME(real_type, backward_alibi),                                          \
    };                                                                                        \
    static const rv_ball_tiles RV_NAME(type, ball) = {                                        \
        .load = load_, .square_norms = RV_NAME(type, square_norms),                           \
        .square_difference = RV_NAME(type, square_difference),                                \
        .rows = RV_NAME(real_type, ball_rows), .scores = RV_NAME(real_type, ball_scores),     \
        .slopes = RV_NAME(real_type, ball_slopes),                                            \
        .weigh = RV_NAME(real_type, ball_weigh),                                              \
        .row_squares = RV_NAME(real_type, ball_row_squares),                                  \
        .row_scores = RV_NAME(real_type, ball_row_scores),                                    \
        .row_weigh = RV_NAME(real_type, ball_row_weigh),                                      \
    };                                                                                        \
    static const rv_rotary_tiles RV_NAME(type, rotary) = {                                    \
        .rotate = RV_NAME(type, rotate), .scores = RV_NAME(type, rotary_scores),              \
    };

RV_TILES(f32, f32, VF_LANES, 4, 4, 1, NULL)
RV_TILES(f64, f64, VD_LANES, 8, 8, 1, NULL)
RV_TILES(f16, f32, VF_LANES, 2, 4, 4, RV_NAME(f16, load_tile))
RV_TILES(bf16, f32, VF_LANES, 2, 4, 4, RV_NAME(bf16, load_tile))
RV_ROW_TILES(i8, f32, f32, VF_LANES, 1, 4, 4, RV_NAME(i8, load_tile))

#define RV_GRAPH_TILES(type, lanes_, real_)                                                   \
    static const rv_graph_tiles RV_NAME(type, graph) = {                                      \
        .lanes = lanes_, .real = real_, .pad = RV_NAME(type, graph_pad),                      \
        .scores = RV_NAME(type, graph_scores), .update = RV_NAME(type, graph_update),         \
        .count = RV_NAME(type, graph_count), .finish = RV_NAME(type, graph_finish),           \
        .transforms = RV_NAME(type, graph_transforms), .dots = RV_NAME(type, graph_dots),     \
        .weigh = RV_NAME(type, graph_weigh),                                                  \
        .differentiate = RV_NAME(type, graph_differentiate),                                  \
        .accumulate = RV_NAME(type, graph_accumulate),                                        \
    };

RV_GRAPH_TILES(f32, VF_LANES, 4)
RV_GRAPH_TILES(f64, VD_LANES, 8)

#define RV_LINEAR_TILES(type)                                                                 \
    static const rv_linear_tiles RV_NAME(type, linear) = {                                    \
        .subtract = RV_NAME(type, linear_subtract),                                           \
        .activate = RV_NAME(type, linear_activate),                                           \
        .row_maxima = RV_NAME(type, linear_row_maxima), .mix = RV_NAME(type, linear_mix),     \
        .causal = RV_NAME(type, linear_causal),                                               \
        .add_scores = RV_NAME(type, linear_add_scores),                                       \
        .column_sums = RV_NAME(type, linear_column_sums),                                     \
        .weigh = RV_NAME(type, linear_weigh),                                                 \
    };

RV_LINEAR_TILES(f32)
RV_LINEAR_TILES(f64)

#define RV_STRING_(x) #x
#define RV_STRING(x) RV_STRING_(x)
#define RV_TABLE__(isa) rv_table_##isa
#define RV_TABLE_(isa) RV_TABLE__(isa)

const rv_table RV_TABLE_(RV_ISA) = {
    .isa = RV_STRING(RV_ISA),
    .softmax = {
        [RV_F32] = &RV_NAME(f32, softmax),
        [RV_F64] = &RV_NAME(f64, softmax),
        [RV_F16] = &RV_NAME(f16, softmax),
        [RV_BF16] = &RV_NAME(bf16, softmax),
        [RV_I8] = &RV_NAME(i8, softmax),
    },
    .wide = {
        [RV_F32] = &RV_NAME(f32, softmax),
        [RV_F64] = &RV_NAME(f64, softmax),
        [RV_F16] = &RV_NAME(f16, softmax),
        [RV_BF16] = &RV_NAME(bf16, softmax),
        [RV_I8] = &RV_NAME(i8, softmax),
    },
    .backward = {
        [RV_F32] = &RV_NAME(f32, backward),
        [RV_F64] = &RV_NAME(f64, backward),
        [RV_F16] = &RV_NAME(f16, backward),
        [RV_BF16] = &RV_NAME(bf16, backward),
    },
    .decode = {
        [RV_F32] = &RV_NAME(f32, decode),
        [RV_F64] = &RV_NAME(f64, decode),
        [RV_F16] = &RV_NAME(f16, decode),
        [RV_BF16] = &RV_NAME(bf16, decode),
        [RV_I8] = &RV_NAME(i8, decode),
    },
    .ball = {
        [RV_F32] = &RV_NAME(f32, ball),
        [RV_F64] = &RV_NAME(f64, ball),
        [RV_F16] = &RV_NAME(f16, ball),
        [RV_BF16] = &RV_NAME(bf16, ball),
    },
    .graph = {[RV_F32] = &RV_NAME(f32, graph), [RV_F64] = &RV_NAME(f64, graph)},
    .rows = {[RV_F32] = &RV_NAME(f32, rows), [RV_F64] = &RV_NAME(f64, rows)},
    .linear = {[RV_F32] = &RV_NAME(f32, linear), [RV_F64] = &RV_NAME(f64, linear)},
    .optim = {[RV_F32] = &RV_NAME(f32, optim), [RV_F64] = &RV_NAME(f64, optim)},
    .rotary = {
        [RV_F32] = &RV_NAME(f32, rotary),
        [RV_F64] = &RV_NAME(f64, rotary),
        [RV_F16] = &RV_NAME(f16, rotary),
        [RV_BF16] = &RV_NAME(bf16, rotary),
    },
    .quantize = RV_NAME(f32, quantize),
    .any_between = RV_NAME(f32, any_between),
};
