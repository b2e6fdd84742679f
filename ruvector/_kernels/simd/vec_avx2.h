/* AVX2, FMA, F16C: 8 floats, 4 doubles a vector, 16 registers. Operations as in
 * vec_avx512.h; a lane mask is a vector of all ones or zeros. */
#ifndef RV_VEC_H
#define RV_VEC_H

#include <immintrin.h>
#include "compiler.h"

#define RV_ISA avx2
#define RV_KEY_BLOCK 6 /* 6 keys x 2 vectors of accumulators + 2 of queries + 1 key of 16 */
#define RV_VECS 2
#define RV_REST_BLOCK 4

typedef __m256 vf;
typedef __m256 vfm;
#define VF_LANES 8

static RV_INLINE __m256i rv_first_n(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static RV_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
static RV_INLINE vf vf_iota(void) { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
static RV_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static RV_INLINE vf vf_load_n(const float *p, int n) { return _mm256_maskload_ps(p, rv_first_n(n)); }
static RV_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
static RV_INLINE void vf_store_n(float *p, vf x, int n) { _mm256_maskstore_ps(p, rv_first_n(n), x); }
static RV_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static RV_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static RV_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static RV_INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
/* a = 2^e m, 1 <= m < 2, for a normal positive a; returns e */
static RV_INLINE vf vf_split(vf a, vf *m)
{
    __m256i b = _mm256_castps_si256(a), one = _mm256_set1_epi32(0x3f800000);
    __m256i e = _mm256_sub_epi32(_mm256_srli_epi32(b, 23), _mm256_set1_epi32(127));
    b = _mm256_or_si256(_mm256_and_si256(b, _mm256_set1_epi32(0x7fffff)), one);
    /* An infinite or NaN argument stays what it is. */
    vf normal = _mm256_cmp_ps(a, _mm256_set1_ps(3.4028234663852886e38f), _CMP_LE_OQ);
    *m = _mm256_blendv_ps(a, _mm256_castsi256_ps(b), normal);
    return _mm256_cvtepi32_ps(e);
}
static RV_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static RV_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static RV_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static RV_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
/* Neighbouring lanes change places. */
static RV_INLINE vf vf_swap(vf a) { return _mm256_permute_ps(a, 0xb1); }
static RV_INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static RV_INLINE vfm vf_lt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static RV_INLINE vfm vf_eq(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static RV_INLINE vf vf_select(vfm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
static RV_INLINE vfm vfm_or(vfm a, vfm b) { return _mm256_or_ps(a, b); }
static RV_INLINE int vfm_any(vfm a) { return _mm256_movemask_ps(a) != 0; }
static RV_INLINE float vf_sum(vf a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static RV_INLINE float vf_maximum(vf a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
static RV_INLINE vf vf_floor_rest(vf x, vf *r)
{
    vf n = _mm256_floor_ps(x);
    *r = _mm256_sub_ps(x, n);
    return n;
}
static RV_INLINE vf vf_scale2(vf p, vf n)
{
    /* The bits of 2^n; where n is out of range they are garbage that the mask removes. */
    __m256i e = _mm256_slli_epi32(
        _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    vf seen = _mm256_cmp_ps(n, _mm256_set1_ps(-126.0f), _CMP_NLT_UQ);
    return _mm256_and_ps(seen, _mm256_mul_ps(p, _mm256_castsi256_ps(e)));
}

typedef __m256d vd;
typedef __m256d vdm;
#define VD_LANES 4

static RV_INLINE __m256i rv_first_n_double(int n)
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
static RV_INLINE vd vd_set1(double x) { return _mm256_set1_pd(x); }
static RV_INLINE vd vd_iota(void) { return _mm256_setr_pd(0, 1, 2, 3); }
static RV_INLINE vd vd_load(const double *p) { return _mm256_loadu_pd(p); }
static RV_INLINE vd vd_load_n(const double *p, int n)
{
    return _mm256_maskload_pd(p, rv_first_n_double(n));
}
static RV_INLINE void vd_store(double *p, vd x) { _mm256_storeu_pd(p, x); }
static RV_INLINE void vd_store_n(double *p, vd x, int n)
{
    _mm256_maskstore_pd(p, rv_first_n_double(n), x);
}
static RV_INLINE vd vd_add(vd a, vd b) { return _mm256_add_pd(a, b); }
static RV_INLINE vd vd_sub(vd a, vd b) { return _mm256_sub_pd(a, b); }
static RV_INLINE vd vd_mul(vd a, vd b) { return _mm256_mul_pd(a, b); }
static RV_INLINE vd vd_sqrt(vd a) { return _mm256_sqrt_pd(a); }
static RV_INLINE vd vd_split(vd a, vd *m)
{
    __m256i b = _mm256_castpd_si256(a);
    /* The exponent's bits under those of 2^52 are the double 2^52 + exponent. */
    __m256i e = _mm256_or_si256(_mm256_srli_epi64(b, 52), _mm256_set1_epi64x(0x4330000000000000));
    b = _mm256_or_si256(_mm256_and_si256(b, _mm256_set1_epi64x(0xfffffffffffff)),
                        _mm256_set1_epi64x(0x3ff0000000000000));
    vd normal = _mm256_cmp_pd(a, _mm256_set1_pd(1.7976931348623157e308), _CMP_LE_OQ);
    *m = _mm256_blendv_pd(a, _mm256_castsi256_pd(b), normal);
    return _mm256_sub_pd(_mm256_castsi256_pd(e), _mm256_set1_pd(4503599627370496.0 + 1023.0));
}
static RV_INLINE vd vd_div(vd a, vd b) { return _mm256_div_pd(a, b); }
static RV_INLINE vd vd_fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
static RV_INLINE vd vd_max(vd a, vd b) { return _mm256_max_pd(a, b); }
static RV_INLINE vd vd_min(vd a, vd b) { return _mm256_min_pd(a, b); }
static RV_INLINE vd vd_swap(vd a) { return _mm256_permute_pd(a, 0x5); }
static RV_INLINE vd vd_abs(vd a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
static RV_INLINE vdm vd_lt(vd a, vd b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
static RV_INLINE vdm vd_eq(vd a, vd b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
static RV_INLINE vd vd_select(vdm m, vd a, vd b) { return _mm256_blendv_pd(b, a, m); }
static RV_INLINE vdm vdm_or(vdm a, vdm b) { return _mm256_or_pd(a, b); }
static RV_INLINE int vdm_any(vdm a) { return _mm256_movemask_pd(a) != 0; }
static RV_INLINE double vd_sum(vd a)
{
    __m128d x = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
static RV_INLINE double vd_maximum(vd a)
{
    __m128d x = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
}
static RV_INLINE vd vd_floor_rest(vd x, vd *r)
{
    vd n = _mm256_floor_pd(x);
    *r = _mm256_sub_pd(x, n);
    return n;
}
static RV_INLINE vd vd_scale2(vd p, vd n)
{
    __m256i e = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n));
    e = _mm256_slli_epi64(_mm256_add_epi64(e, _mm256_set1_epi64x(1023)), 52);
    vd seen = _mm256_cmp_pd(n, _mm256_set1_pd(-1022.0), _CMP_NLT_UQ);
    return _mm256_and_pd(seen, _mm256_mul_pd(p, _mm256_castsi256_pd(e)));
}

static RV_INLINE void vf_transpose(vf r[8])
{
    __m256 t[8], u[8];
    RV_UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    RV_UNROLL for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    RV_UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

static RV_INLINE void vd_transpose(vd r[4])
{
    __m256d a = _mm256_unpacklo_pd(r[0], r[1]), b = _mm256_unpackhi_pd(r[0], r[1]);
    __m256d c = _mm256_unpacklo_pd(r[2], r[3]), d = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a, c, 0x20);
    r[1] = _mm256_permute2f128_pd(b, d, 0x20);
    r[2] = _mm256_permute2f128_pd(a, c, 0x31);
    r[3] = _mm256_permute2f128_pd(b, d, 0x31);
}

/* Lane i of the result is the sum over r[i]. */
static RV_INLINE vf vf_sum_each(const vf r[8])
{
    __m256 t[4], u[2];
    RV_UNROLL for (int i = 0; i < 4; i++)
        t[i] = _mm256_add_ps(_mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]),
                             _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    RV_UNROLL for (int i = 0; i < 2; i++)
        u[i] = _mm256_add_ps(_mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44),
                             _mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0xee));
    return _mm256_add_ps(_mm256_permute2f128_ps(u[0], u[1], 0x20),
                         _mm256_permute2f128_ps(u[0], u[1], 0x31));
}

static RV_INLINE vd vd_sum_each(const vd r[4])
{
    __m256d t0 = _mm256_add_pd(_mm256_unpacklo_pd(r[0], r[1]), _mm256_unpackhi_pd(r[0], r[1]));
    __m256d t1 = _mm256_add_pd(_mm256_unpacklo_pd(r[2], r[3]), _mm256_unpackhi_pd(r[2], r[3]));
    return _mm256_add_pd(_mm256_permute2f128_pd(t0, t1, 0x20),
                         _mm256_permute2f128_pd(t0, t1, 0x31));
}

static RV_INLINE __m128i rv_first_n_of_4(int n)
{
    return _mm_cmpgt_epi32(_mm_set1_epi32(n), _mm_setr_epi32(0, 1, 2, 3));
}
static RV_INLINE vd vf_widen(vf x, int part)
{
    return _mm256_cvtps_pd(part ? _mm256_extractf128_ps(x, 1) : _mm256_castps256_ps128(x));
}
static RV_INLINE vd vd_load_f32(const float *p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
static RV_INLINE vd vd_load_f32_n(const float *p, int n)
{
    return _mm256_cvtps_pd(_mm_maskload_ps(p, rv_first_n_of_4(n)));
}
static RV_INLINE void vd_store_f32(float *p, vd x) { _mm_storeu_ps(p, _mm256_cvtpd_ps(x)); }
static RV_INLINE void vd_store_f32_n(float *p, vd x, int n)
{
    _mm_maskstore_ps(p, rv_first_n_of_4(n), _mm256_cvtpd_ps(x));
}

static RV_INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static RV_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static RV_INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
static RV_INLINE vf vf_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static RV_INLINE void vf_store_bf16(uint16_t *p, vf x)
{
    /* Round half to even on the bits; a NaN keeps its sign and becomes quiet. */
    __m256i b = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_srli_epi32(_mm256_blendv_epi8(r, quiet, nan), 16);
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    _mm_storeu_si128((__m128i *)p, packed);
}

#endif
