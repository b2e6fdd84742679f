/* AVX-512 (F, DQ, BW, VL): 16 floats, 8 doubles a vector, 32 registers.
 *
 * vf_* and vd_* are the same operations on floats and doubles; vfm and vdm are lane masks.
 * max(a, b) and min(a, b) are b where either is NaN, as MAXPS defines it: callers put the
 * running maximum second, so that a NaN score cannot wipe it out.
 */
#ifndef RV_VEC_H
#define RV_VEC_H

#include <immintrin.h>
#include "compiler.h"

#define RV_ISA avx512
#define RV_KEY_BLOCK 12 /* 12 keys x 2 vectors of accumulators + 2 of queries + 1 key of 32 */
#define RV_VECS 2
#define RV_REST_BLOCK 8

typedef __m512 vf;
typedef __mmask16 vfm;
#define VF_LANES 16

static RV_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
static RV_INLINE vf vf_iota(void)
{
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
static RV_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static RV_INLINE vf vf_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
static RV_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
static RV_INLINE void vf_store_n(float *p, vf x, int n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), x);
}
static RV_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static RV_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static RV_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static RV_INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
/* a = 2^e m, 1 <= m < 2, for a normal positive a; returns e */
static RV_INLINE vf vf_split(vf a, vf *m)
{
    *m = _mm512_getmant_ps(a, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    return _mm512_getexp_ps(a);
}
static RV_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static RV_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static RV_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static RV_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
/* Neighbouring lanes change places. */
static RV_INLINE vf vf_swap(vf a) { return _mm512_permute_ps(a, 0xb1); }
static RV_INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
static RV_INLINE vfm vf_lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static RV_INLINE vfm vf_eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static RV_INLINE vf vf_select(vfm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
static RV_INLINE vfm vfm_or(vfm a, vfm b) { return (vfm)(a | b); }
static RV_INLINE int vfm_any(vfm a) { return a != 0; }
static RV_INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
static RV_INLINE float vf_maximum(vf a) { return _mm512_reduce_max_ps(a); }
/* n = floor(x), *r = x - n */
static RV_INLINE vf vf_floor_rest(vf x, vf *r)
{
    *r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return x;
}
/* p 2^floor(n), 0 where n < -126: no denormals, and -inf gives 0 */
static RV_INLINE vf vf_scale2(vf p, vf n)
{
    __mmask16 k = _mm512_cmp_ps_mask(n, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(k, p, n);
}

typedef __m512d vd;
typedef __mmask8 vdm;
#define VD_LANES 8

static RV_INLINE vd vd_set1(double x) { return _mm512_set1_pd(x); }
static RV_INLINE vd vd_iota(void) { return _mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7); }
static RV_INLINE vd vd_load(const double *p) { return _mm512_loadu_pd(p); }
static RV_INLINE vd vd_load_n(const double *p, int n)
{
    return _mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1u), p);
}
static RV_INLINE void vd_store(double *p, vd x) { _mm512_storeu_pd(p, x); }
static RV_INLINE void vd_store_n(double *p, vd x, int n)
{
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1u), x);
}
static RV_INLINE vd vd_add(vd a, vd b) { return _mm512_add_pd(a, b); }
static RV_INLINE vd vd_sub(vd a, vd b) { return _mm512_sub_pd(a, b); }
static RV_INLINE vd vd_mul(vd a, vd b) { return _mm512_mul_pd(a, b); }
static RV_INLINE vd vd_sqrt(vd a) { return _mm512_sqrt_pd(a); }
static RV_INLINE vd vd_split(vd a, vd *m)
{
    *m = _mm512_getmant_pd(a, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    return _mm512_getexp_pd(a);
}
static RV_INLINE vd vd_div(vd a, vd b) { return _mm512_div_pd(a, b); }
static RV_INLINE vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
static RV_INLINE vd vd_max(vd a, vd b) { return _mm512_max_pd(a, b); }
static RV_INLINE vd vd_min(vd a, vd b) { return _mm512_min_pd(a, b); }
static RV_INLINE vd vd_swap(vd a) { return _mm512_permute_pd(a, 0x55); }
static RV_INLINE vd vd_abs(vd a) { return _mm512_abs_pd(a); }
static RV_INLINE vdm vd_lt(vd a, vd b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
static RV_INLINE vdm vd_eq(vd a, vd b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
static RV_INLINE vd vd_select(vdm m, vd a, vd b) { return _mm512_mask_blend_pd(m, b, a); }
static RV_INLINE vdm vdm_or(vdm a, vdm b) { return (vdm)(a | b); }
static RV_INLINE int vdm_any(vdm a) { return a != 0; }
static RV_INLINE double vd_sum(vd a) { return _mm512_reduce_add_pd(a); }
static RV_INLINE double vd_maximum(vd a) { return _mm512_reduce_max_pd(a); }
static RV_INLINE vd vd_floor_rest(vd x, vd *r)
{
    *r = _mm512_reduce_pd(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return x;
}
static RV_INLINE vd vd_scale2(vd p, vd n)
{
    __mmask8 k = _mm512_cmp_pd_mask(n, _mm512_set1_pd(-1022.0), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_pd(k, p, n);
}

/* 16 or 8 rows become columns, in place. */
static RV_INLINE void vf_transpose(vf r[16])
{
    __m512 t[16], u[16];
    RV_UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    RV_UNROLL for (int i = 0; i < 16; i += 4) {
        u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    RV_UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
    }
    RV_UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

static RV_INLINE void vd_transpose(vd r[8])
{
    __m512d t[8], u[8];
    RV_UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    RV_UNROLL for (int i = 0; i < 2; i++) {
        u[i] = _mm512_shuffle_f64x2(t[i], t[i + 2], 0x88);
        u[i + 2] = _mm512_shuffle_f64x2(t[i], t[i + 2], 0xdd);
        u[i + 4] = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0x88);
        u[i + 6] = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0xdd);
    }
    RV_UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f64x2(u[i], u[i + 4], 0x88);
        r[i + 4] = _mm512_shuffle_f64x2(u[i], u[i + 4], 0xdd);
    }
}

/* Lane i of the result is the sum over r[i]. */
static RV_INLINE vf vf_sum_each(const vf r[16])
{
    __m512 t[8], u[4], v[2];
    RV_UNROLL for (int i = 0; i < 8; i++)
        t[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]),
                             _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    RV_UNROLL for (int i = 0; i < 4; i++)
        u[i] = _mm512_add_ps(_mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0xee));
    RV_UNROLL for (int i = 0; i < 2; i++)
        v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x88),
                         _mm512_shuffle_f32x4(v[0], v[1], 0xdd));
}

static RV_INLINE vd vd_sum_each(const vd r[8])
{
    __m512d t[4], u[2];
    RV_UNROLL for (int i = 0; i < 4; i++)
        t[i] = _mm512_add_pd(_mm512_unpacklo_pd(r[2 * i], r[2 * i + 1]),
                             _mm512_unpackhi_pd(r[2 * i], r[2 * i + 1]));
    RV_UNROLL for (int i = 0; i < 2; i++)
        u[i] = _mm512_add_pd(_mm512_shuffle_f64x2(t[2 * i], t[2 * i + 1], 0x88),
                             _mm512_shuffle_f64x2(t[2 * i], t[2 * i + 1], 0xdd));
    return _mm512_add_pd(_mm512_shuffle_f64x2(u[0], u[1], 0x88),
                         _mm512_shuffle_f64x2(u[0], u[1], 0xdd));
}

/* Doubles of floats: lanes part * VD_LANES and on of a vector, and from and to memory. */
static RV_INLINE vd vf_widen(vf x, int part)
{
    return _mm512_cvtps_pd(part ? _mm512_extractf32x8_ps(x, 1) : _mm512_castps512_ps256(x));
}
static RV_INLINE vd vd_load_f32(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
static RV_INLINE vd vd_load_f32_n(const float *p, int n)
{
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps((__mmask8)((1u << n) - 1u), p));
}
static RV_INLINE void vd_store_f32(float *p, vd x) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(x)); }
static RV_INLINE void vd_store_f32_n(float *p, vd x, int n)
{
    _mm256_mask_storeu_ps(p, (__mmask8)((1u << n) - 1u), _mm512_cvtpd_ps(x));
}

/* Stored 16-bit floats and bytes, widened. */
static RV_INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static RV_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static RV_INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
static RV_INLINE vf vf_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static RV_INLINE void vf_store_bf16(uint16_t *p, vf x)
{
    /* Round half to even on the bits; a NaN keeps its sign and becomes quiet. */
    __m512i b = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, b, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}

#endif
