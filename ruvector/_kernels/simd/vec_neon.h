/* NEON on AArch64: 4 floats, 2 doubles a vector, 32 registers. Operations as in
 * vec_avx512.h; a lane mask is a vector of all ones or zeros. */
#ifndef RV_VEC_H
#define RV_VEC_H

#include <arm_neon.h>
#include <string.h>
#include "compiler.h"

#define RV_ISA neon
#define RV_KEY_BLOCK 6 /* 6 keys x 4 vectors of accumulators + 4 of queries + 1 key of 32 */
#define RV_VECS 4
#define RV_REST_BLOCK 4

typedef float32x4_t vf;
typedef uint32x4_t vfm;
#define VF_LANES 4

static RV_INLINE vf vf_set1(float x) { return vdupq_n_f32(x); }
static RV_INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
static RV_INLINE void vf_store(float *p, vf x) { vst1q_f32(p, x); }
static RV_INLINE vf vf_load_n(const float *p, int n)
{
    float x[4] = {0, 0, 0, 0};
    for (int i = 0; i < n; i++) x[i] = p[i];
    return vld1q_f32(x);
}
static RV_INLINE void vf_store_n(float *p, vf a, int n)
{
    float x[4];
    vst1q_f32(x, a);
    for (int i = 0; i < n; i++) p[i] = x[i];
}
static RV_INLINE vf vf_iota(void)
{
    const float x[4] = {0, 1, 2, 3};
    return vld1q_f32(x);
}
static RV_INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static RV_INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static RV_INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static RV_INLINE vf vf_sqrt(vf a) { return vsqrtq_f32(a); }
/* a = 2^e m, 1 <= m < 2, for a normal positive a; returns e */
static RV_INLINE vf vf_split(vf a, vf *m)
{
    uint32x4_t b = vreinterpretq_u32_f32(a);
    int32x4_t e = vsubq_s32(vreinterpretq_s32_u32(vshrq_n_u32(b, 23)), vdupq_n_s32(127));
    b = vorrq_u32(vandq_u32(b, vdupq_n_u32(0x7fffff)), vdupq_n_u32(0x3f800000));
    /* An infinite or NaN argument stays what it is. */
    *m = vbslq_f32(vcleq_f32(a, vdupq_n_f32(3.4028234663852886e38f)),
                   vreinterpretq_f32_u32(b), a);
    return vcvtq_f32_s32(e);
}
static RV_INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static RV_INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
/* FMAX would return the NaN on either side; b is wanted. */
static RV_INLINE vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static RV_INLINE vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
/* Neighbouring lanes change places. */
static RV_INLINE vf vf_swap(vf a) { return vrev64q_f32(a); }
static RV_INLINE vf vf_abs(vf a) { return vabsq_f32(a); }
static RV_INLINE vfm vf_lt(vf a, vf b) { return vcltq_f32(a, b); }
static RV_INLINE vfm vf_eq(vf a, vf b) { return vceqq_f32(a, b); }
static RV_INLINE vf vf_select(vfm m, vf a, vf b) { return vbslq_f32(m, a, b); }
static RV_INLINE vfm vfm_or(vfm a, vfm b) { return vorrq_u32(a, b); }
static RV_INLINE int vfm_any(vfm a) { return vmaxvq_u32(a) != 0; }
static RV_INLINE float vf_sum(vf a) { return vaddvq_f32(a); }
static RV_INLINE float vf_maximum(vf a) { return vmaxvq_f32(a); }
static RV_INLINE vf vf_floor_rest(vf x, vf *r)
{
    vf n = vrndmq_f32(x);
    *r = vsubq_f32(x, n);
    return n;
}
static RV_INLINE vf vf_scale2(vf p, vf n)
{
    /* The bits of 2^n; where n is out of range they are garbage that the mask removes. */
    int32x4_t e = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    vf y = vmulq_f32(p, vreinterpretq_f32_s32(e));
    return vbslq_f32(vcltq_f32(n, vdupq_n_f32(-126.0f)), vdupq_n_f32(0), y);
}

typedef float64x2_t vd;
typedef uint64x2_t vdm;
#define VD_LANES 2

static RV_INLINE vd vd_set1(double x) { return vdupq_n_f64(x); }
static RV_INLINE vd vd_load(const double *p) { return vld1q_f64(p); }
static RV_INLINE void vd_store(double *p, vd x) { vst1q_f64(p, x); }
static RV_INLINE vd vd_load_n(const double *p, int n)
{
    return n > 1 ? vld1q_f64(p) : vcombine_f64(vld1_f64(p), vdup_n_f64(0));
}
static RV_INLINE void vd_store_n(double *p, vd a, int n)
{
    p[0] = vgetq_lane_f64(a, 0);
    if (n > 1) p[1] = vgetq_lane_f64(a, 1);
}
static RV_INLINE vd vd_iota(void) { return vcombine_f64(vdup_n_f64(0), vdup_n_f64(1)); }
static RV_INLINE vd vd_add(vd a, vd b) { return vaddq_f64(a, b); }
static RV_INLINE vd vd_sub(vd a, vd b) { return vsubq_f64(a, b); }
static RV_INLINE vd vd_mul(vd a, vd b) { return vmulq_f64(a, b); }
static RV_INLINE vd vd_sqrt(vd a) { return vsqrtq_f64(a); }
static RV_INLINE vd vd_split(vd a, vd *m)
{
    uint64x2_t b = vreinterpretq_u64_f64(a);
    int64x2_t e = vsubq_s64(vreinterpretq_s64_u64(vshrq_n_u64(b, 52)), vdupq_n_s64(1023));
    b = vorrq_u64(vandq_u64(b, vdupq_n_u64(0xfffffffffffff)), vdupq_n_u64(0x3ff0000000000000));
    *m = vbslq_f64(vcleq_f64(a, vdupq_n_f64(1.7976931348623157e308)),
                   vreinterpretq_f64_u64(b), a);
    return vcvtq_f64_s64(e);
}
static RV_INLINE vd vd_div(vd a, vd b) { return vdivq_f64(a, b); }
static RV_INLINE vd vd_fma(vd a, vd b, vd c) { return vfmaq_f64(c, a, b); }
static RV_INLINE vd vd_max(vd a, vd b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
static RV_INLINE vd vd_min(vd a, vd b) { return vbslq_f64(vcltq_f64(a, b), a, b); }
static RV_INLINE vd vd_swap(vd a) { return vextq_f64(a, a, 1); }
static RV_INLINE vd vd_abs(vd a) { return vabsq_f64(a); }
static RV_INLINE vdm vd_lt(vd a, vd b) { return vcltq_f64(a, b); }
static RV_INLINE vdm vd_eq(vd a, vd b) { return vceqq_f64(a, b); }
static RV_INLINE vd vd_select(vdm m, vd a, vd b) { return vbslq_f64(m, a, b); }
static RV_INLINE vdm vdm_or(vdm a, vdm b) { return vorrq_u64(a, b); }
static RV_INLINE int vdm_any(vdm a) { return vmaxvq_u32(vreinterpretq_u32_u64(a)) != 0; }
static RV_INLINE double vd_sum(vd a) { return vaddvq_f64(a); }
static RV_INLINE double vd_maximum(vd a) { return vmaxvq_f64(a); }
static RV_INLINE vd vd_floor_rest(vd x, vd *r)
{
    vd n = vrndmq_f64(x);
    *r = vsubq_f64(x, n);
    return n;
}
static RV_INLINE vd vd_scale2(vd p, vd n)
{
    int64x2_t e = vshlq_n_s64(vaddq_s64(vcvtq_s64_f64(n), vdupq_n_s64(1023)), 52);
    vd y = vmulq_f64(p, vreinterpretq_f64_s64(e));
    return vbslq_f64(vcltq_f64(n, vdupq_n_f64(-1022.0)), vdupq_n_f64(0), y);
}

static RV_INLINE void vf_transpose(vf r[4])
{
    float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

static RV_INLINE void vd_transpose(vd r[2])
{
    vd a = vtrn1q_f64(r[0], r[1]);
    r[1] = vtrn2q_f64(r[0], r[1]);
    r[0] = a;
}

/* Lane i of the result is the sum over r[i]. */
static RV_INLINE vf vf_sum_each(const vf r[4])
{
    return vpaddq_f32(vpaddq_f32(r[0], r[1]), vpaddq_f32(r[2], r[3]));
}

static RV_INLINE vd vd_sum_each(const vd r[2]) { return vpaddq_f64(r[0], r[1]); }

static RV_INLINE vd vf_widen(vf x, int part)
{
    return part ? vcvt_high_f64_f32(x) : vcvt_f64_f32(vget_low_f32(x));
}
static RV_INLINE vd vd_load_f32(const float *p) { return vcvt_f64_f32(vld1_f32(p)); }
static RV_INLINE vd vd_load_f32_n(const float *p, int n)
{
    return n > 1 ? vd_load_f32(p) : vcombine_f64(vdup_n_f64(p[0]), vdup_n_f64(0));
}
static RV_INLINE void vd_store_f32(float *p, vd x) { vst1_f32(p, vcvt_f32_f64(x)); }
static RV_INLINE void vd_store_f32_n(float *p, vd x, int n)
{
    p[0] = (float)vgetq_lane_f64(x, 0);
    if (n > 1) p[1] = (float)vgetq_lane_f64(x, 1);
}

static RV_INLINE vf vf_load_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static RV_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}
static RV_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
static RV_INLINE vf vf_load_i8(const int8_t *p)
{
    uint32_t bits;
    memcpy(&bits, p, sizeof bits);
    int16x8_t wide = vmovl_s8(vcreate_s8(bits));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
static RV_INLINE void vf_store_bf16(uint16_t *p, vf x)
{
    /* Round half to even on the bits; a NaN keeps its sign and becomes quiet. */
    uint32x4_t b = vreinterpretq_u32_f32(x);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(b, 16), vdupq_n_u32(1));
    uint32x4_t r = vaddq_u32(b, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    uint32x4_t quiet = vorrq_u32(b, vdupq_n_u32(0x400000));
    r = vbslq_u32(vceqq_f32(x, x), r, quiet);
    vst1_u16(p, vmovn_u32(vshrq_n_u32(r, 16)));
}

#endif
