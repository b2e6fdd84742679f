/* No instruction set assumed: four lanes as plain arrays, which a compiler turns into SSE2
 * or NEON where the target has them. Operations as in vec_avx512.h; a lane mask is a vector
 * of ones and zeros. No contraction: a * b + c rounds twice (the build sets it). */
#ifndef RV_VEC_H
#define RV_VEC_H

#include <math.h>
#include <string.h>
#include "compiler.h"

#define RV_ISA scalar
#define RV_KEY_BLOCK 4
#define RV_VECS 2
#define RV_REST_BLOCK 2

#define RV_LANES 4
#define RV_EACH for (int i = 0; i < RV_LANES; i++)

#define RV_SCALAR_TYPE(V, M, REAL, FABS, FLOOR, SQRT, FREXP)                                 \
    typedef struct { REAL x[RV_LANES]; } V;                                                  \
    typedef struct { int x[RV_LANES]; } M;                                                   \
    static RV_INLINE V V##_set1(REAL a) { V r; RV_EACH r.x[i] = a; return r; }               \
    static RV_INLINE V V##_iota(void) { V r; RV_EACH r.x[i] = (REAL)i; return r; }           \
    static RV_INLINE V V##_load(const REAL *p) { V r; RV_EACH r.x[i] = p[i]; return r; }     \
    static RV_INLINE V V##_load_n(const REAL *p, int n)                                      \
    { V r; RV_EACH r.x[i] = i < n ? p[i] : 0; return r; }                                    \
    static RV_INLINE void V##_store(REAL *p, V a) { RV_EACH p[i] = a.x[i]; }                 \
    static RV_INLINE void V##_store_n(REAL *p, V a, int n)                                   \
    { for (int i = 0; i < n; i++) p[i] = a.x[i]; }                                           \
    static RV_INLINE V V##_add(V a, V b) { RV_EACH a.x[i] += b.x[i]; return a; }             \
    static RV_INLINE V V##_sub(V a, V b) { RV_EACH a.x[i] -= b.x[i]; return a; }             \
    static RV_INLINE V V##_mul(V a, V b) { RV_EACH a.x[i] *= b.x[i]; return a; }             \
    static RV_INLINE V V##_div(V a, V b) { RV_EACH a.x[i] /= b.x[i]; return a; }             \
    static RV_INLINE V V##_sqrt(V a) { RV_EACH a.x[i] = SQRT(a.x[i]); return a; }            \
    /* a = 2^e m, 1 <= m < 2, for a normal positive a; returns e */                          \
    static RV_INLINE V V##_split(V a, V *m)                                                  \
    {                                                                                        \
        V r;                                                                                 \
        RV_EACH {                                                                            \
            int e = 0;                                                                       \
            m->x[i] = 2 * FREXP(a.x[i], &e);                                                 \
            r.x[i] = (REAL)(e - 1);                                                          \
        }                                                                                    \
        return r;                                                                            \
    }                                                                                        \
    static RV_INLINE V V##_fma(V a, V b, V c)                                                \
    { RV_EACH c.x[i] = a.x[i] * b.x[i] + c.x[i]; return c; }                                 \
    static RV_INLINE V V##_max(V a, V b)                                                     \
    { RV_EACH b.x[i] = a.x[i] > b.x[i] ? a.x[i] : b.x[i]; return b; }                        \
    static RV_INLINE V V##_min(V a, V b)                                                     \
    { RV_EACH b.x[i] = a.x[i] < b.x[i] ? a.x[i] : b.x[i]; return b; }                        \
    /* Neighbouring lanes change places. */                                                  \
    static RV_INLINE V V##_swap(V a) { V r; RV_EACH r.x[i] = a.x[i ^ 1]; return r; }         \
    static RV_INLINE V V##_abs(V a) { RV_EACH a.x[i] = FABS(a.x[i]); return a; }             \
    static RV_INLINE M V##_lt(V a, V b) { M m; RV_EACH m.x[i] = a.x[i] < b.x[i]; return m; } \
    static RV_INLINE M V##_eq(V a, V b) { M m; RV_EACH m.x[i] = a.x[i] == b.x[i]; return m; } \
    static RV_INLINE V V##_select(M m, V a, V b)                                             \
    { RV_EACH b.x[i] = m.x[i] ? a.x[i] : b.x[i]; return b; }                                 \
    static RV_INLINE M V##m_or(M a, M b) { RV_EACH a.x[i] |= b.x[i]; return a; }             \
    static RV_INLINE int V##m_any(M a) { int r = 0; RV_EACH r |= a.x[i]; return r; }         \
    static RV_INLINE REAL V##_sum(V a) { REAL r = 0; RV_EACH r += a.x[i]; return r; }        \
    static RV_INLINE REAL V##_maximum(V a)                                                   \
    { REAL r = a.x[0]; RV_EACH r = a.x[i] > r ? a.x[i] : r; return r; }                      \
    static RV_INLINE V V##_floor_rest(V a, V *r)                                             \
    { V n; RV_EACH n.x[i] = FLOOR(a.x[i]); RV_EACH r->x[i] = a.x[i] - n.x[i]; return n; }    \
    static RV_INLINE V V##_sum_each(const V r[RV_LANES])                                     \
    { V s; RV_EACH s.x[i] = V##_sum(r[i]); return s; }                                       \
    static RV_INLINE void V##_transpose(V r[RV_LANES])                                       \
    {                                                                                        \
        for (int i = 0; i < RV_LANES; i++)                                                   \
            for (int j = 0; j < i; j++) {                                                    \
                REAL t = r[i].x[j];                                                          \
                r[i].x[j] = r[j].x[i];                                                       \
                r[j].x[i] = t;                                                               \
            }                                                                                \
    }

RV_SCALAR_TYPE(vf, vfm, float, fabsf, floorf, sqrtf, frexpf)
RV_SCALAR_TYPE(vd, vdm, double, fabs, floor, sqrt, frexp)
#define VF_LANES RV_LANES
#define VD_LANES RV_LANES

static RV_INLINE vd vf_widen(vf a, int part)
{
    vd r;
    (void)part; /* there is one */
    RV_EACH r.x[i] = a.x[i];
    return r;
}
static RV_INLINE vd vd_load_f32(const float *p) { vd r; RV_EACH r.x[i] = p[i]; return r; }
static RV_INLINE vd vd_load_f32_n(const float *p, int n)
{
    vd r;
    RV_EACH r.x[i] = i < n ? p[i] : 0;
    return r;
}
static RV_INLINE void vd_store_f32(float *p, vd a) { RV_EACH p[i] = (float)a.x[i]; }
static RV_INLINE void vd_store_f32_n(float *p, vd a, int n)
{
    for (int i = 0; i < n; i++) p[i] = (float)a.x[i];
}

static RV_INLINE vf vf_scale2(vf p, vf n)
{
    RV_EACH {
        /* `!(n < -126)` keeps NaN; the clamp keeps the conversion defined. */
        float clamped = n.x[i] > -126.0f ? (n.x[i] < 128.0f ? n.x[i] : 128.0f) : -126.0f;
        uint32_t bits = (uint32_t)((int32_t)clamped + 127) << 23;
        float power;
        memcpy(&power, &bits, sizeof power);
        p.x[i] = n.x[i] < -126.0f ? 0.0f : p.x[i] * power;
    }
    return p;
}

static RV_INLINE vd vd_scale2(vd p, vd n)
{
    RV_EACH {
        double clamped = n.x[i] > -1022.0 ? (n.x[i] < 1024.0 ? n.x[i] : 1024.0) : -1022.0;
        uint64_t bits = (uint64_t)((int64_t)clamped + 1023) << 52;
        double power;
        memcpy(&power, &bits, sizeof power);
        p.x[i] = n.x[i] < -1022.0 ? 0.0 : p.x[i] * power;
    }
    return p;
}

static RV_INLINE float rv_widen_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    uint32_t bits;
    float x;
    if (rest >= 0x7c00u) bits = sign | 0x7f800000u | (rest & 0x3ffu) << 13; /* inf, NaN */
    else if (rest >= 0x400u) bits = sign | ((rest << 13) + 0x38000000u);
    else { /* subnormal: rest * 2^-24 */
        x = (float)rest * 5.9604644775390625e-8f;
        return sign ? -x : x;
    }
    memcpy(&x, &bits, sizeof x);
    return x;
}

static RV_INLINE uint16_t rv_narrow_f16(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    const uint16_t sign = (uint16_t)((b >> 16) & 0x8000u);
    b &= 0x7fffffffu;
    if (b > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (b >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to infinity */
    if (b < 0x38800000u) { /* subnormal: adding 1/2 rounds at 2^-24, half to even */
        float magnitude;
        memcpy(&magnitude, &b, sizeof magnitude);
        magnitude += 0.5f;
        memcpy(&b, &magnitude, sizeof b);
        return (uint16_t)(sign | (b - 0x3f000000u));
    }
    return (uint16_t)(sign | ((b + 0xc8000fffu + ((b >> 13) & 1u)) >> 13));
}

static RV_INLINE vf vf_load_f16(const uint16_t *p)
{
    vf r;
    RV_EACH r.x[i] = rv_widen_f16(p[i]);
    return r;
}
static RV_INLINE void vf_store_f16(uint16_t *p, vf a) { RV_EACH p[i] = rv_narrow_f16(a.x[i]); }
static RV_INLINE vf vf_load_bf16(const uint16_t *p)
{
    vf r;
    RV_EACH {
        uint32_t bits = (uint32_t)p[i] << 16;
        memcpy(&r.x[i], &bits, sizeof bits);
    }
    return r;
}
static RV_INLINE vf vf_load_i8(const int8_t *p) { vf r; RV_EACH r.x[i] = p[i]; return r; }
static RV_INLINE void vf_store_bf16(uint16_t *p, vf a)
{
    /* Round half to even on the bits; a NaN keeps its sign and becomes quiet. */
    RV_EACH {
        uint32_t b;
        memcpy(&b, &a.x[i], sizeof b);
        b = a.x[i] != a.x[i] ? b | 0x400000u : b + 0x7fffu + ((b >> 16) & 1u);
        p[i] = (uint16_t)(b >> 16);
    }
}

#endif
