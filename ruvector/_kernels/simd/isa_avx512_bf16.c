/* AVX-512 with VDPBF16PS (Zen 4, Cooper Lake and later): the tiles of AVX-512, but bfloat16
 * prefill takes both products from the dot instruction, two multiply-adds a lane.
 *
 *   S[j] = scale * sum over pairs of d of  k[j][d..d+1] . q[d..d+1]     (sums in float)
 *   O[d] += sum over pairs of j of  p[j..j+1] . v[j..j+1][d]
 *
 * K is read in place, two neighbouring elements being one broadcast; V is interleaved by
 * pairs of rows once a key tile; P is rounded to bfloat16 (as every bfloat16 engine does),
 * its sum is not. The instruction takes subnormals as zero.
 */
#include "table.h"
#if RV_HAVE_X86

#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512bf16"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,prefer-vector-width=512")
#endif

#include "vec_avx512.h"
#include "blocks.inc.h"

#define PAIRS(n) (((n) + 1) / 2)

static RV_INLINE __m512bh broadcast_pair(const uint16_t *p)
{
    uint32_t bits;
    memcpy(&bits, p, sizeof bits);
    return (__m512bh)_mm512_set1_epi32((int)bits);
}

/* Lane i of the result holds (low[i], high[i]). */
static RV_INLINE __m512i interleave(__m256i low, __m256i high)
{
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

static RV_INLINE __m256i load_part(const uint16_t *p, int n)
{
    return _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1u), p);
}

/* qt[d / 2][cols] pairs of unscaled elements, an odd last one with 0; the scale behind. */
static void pack(const void *const *rows, int cols, ptrdiff_t dim, double scale, void *qt_)
{
    uint32_t *qt = qt_;
    const float factor = (float)scale;
    for (int c = 0; c < cols; c += 16)
        for (ptrdiff_t d = 0; d < dim; d += 32) {
            vf r[16];
            const uint32_t seen = dim - d < 32 ? (1u << (dim - d)) - 1u : ~0u;
            RV_UNROLL for (int i = 0; i < 16; i++)
                r[i] = _mm512_castsi512_ps(
                    _mm512_maskz_loadu_epi16(seen, (const uint16_t *)rows[c + i] + d));
            vf_transpose(r);
            for (int i = 0; i < 16 && d + 2 * i < dim; i++)
                _mm512_storeu_ps((float *)qt + (d / 2 + i) * cols + c, r[i]);
        }
    memcpy(qt + PAIRS(dim) * cols, &factor, sizeof factor);
}

static RV_INLINE void score_block(const uint32_t *qt, const uint16_t *k, ptrdiff_t ldk,
                                  ptrdiff_t dim, vf scale, float *s, const int KB,
                                  const int VECS)
{
    __m512 acc[RV_KEY_BLOCK][2];
    const int cols = VECS * 16;
    const uint16_t *base[(RV_KEY_BLOCK + 2) / 3];
    RV_UNROLL for (int b = 0; b < (KB + 2) / 3; b++) base[b] = k + 3 * b * ldk;
    RV_UNROLL for (int b = 0; b < KB; b++) RV_UNROLL for (int c = 0; c < VECS; c++)
        acc[b][c] = _mm512_setzero_ps();
    for (ptrdiff_t d = 0; d + 1 < dim; d += 2) {
        __m512bh q[2];
        RV_UNROLL for (int c = 0; c < VECS; c++)
            q[c] = (__m512bh)_mm512_loadu_si512(qt + d / 2 * cols + c * 16);
        RV_UNROLL for (int b = 0; b < KB; b++) {
            __m512bh x = broadcast_pair(base[b / 3] + (b % 3) * ldk);
            RV_UNROLL for (int c = 0; c < VECS; c++)
                acc[b][c] = _mm512_dpbf16_ps(acc[b][c], x, q[c]);
        }
        RV_UNROLL for (int b = 0; b < (KB + 2) / 3; b++) base[b] += 2;
    }
    if (dim & 1)
        RV_UNROLL for (int b = 0; b < KB; b++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32(base[b / 3][(b % 3) * ldk]);
            RV_UNROLL for (int c = 0; c < VECS; c++)
                acc[b][c] = _mm512_dpbf16_ps(
                    acc[b][c], x,
                    (__m512bh)_mm512_loadu_si512(qt + dim / 2 * cols + c * 16));
        }
    RV_UNROLL for (int b = 0; b < KB; b++) RV_UNROLL for (int c = 0; c < VECS; c++)
        vf_store(s + b * cols + c * 16, vf_mul(scale, acc[b][c]));
}

static void scores(const void *qt, int cols, const void *k, ptrdiff_t ldk, int nk,
                   ptrdiff_t dim, void *s)
{
    const uint16_t *key = k;
    float *out = s, factor;
    memcpy(&factor, (const uint32_t *)qt + PAIRS(dim) * cols, sizeof factor);
    const vf scale = vf_set1(factor);
#define RV_CALL_WIDE(i, n) score_block(qt, key + (i) * ldk, ldk, dim, scale, out + (i) * 32, n, 2);
#define RV_CALL_ONE(i, n) score_block(qt, key + (i) * ldk, ldk, dim, scale, out + (i) * 16, n, 1);
    if (cols > 16) RV_FOR_BLOCKS(nk, RV_CALL_WIDE)
    else RV_FOR_BLOCKS(nk, RV_CALL_ONE)
#undef RV_CALL_WIDE
#undef RV_CALL_ONE
}

/* dst[j / 2][d] = (v[j][d], v[j + 1][d]), an odd last row with 0 */
static void load_values(const void *v_, ptrdiff_t ldv, int nk, ptrdiff_t dv, void *dst_)
{
    const uint16_t *v = v_;
    uint32_t *dst = dst_;
    for (int j = 0; j < nk; j += 2, v += 2 * ldv, dst += dv)
        for (ptrdiff_t d = 0; d < dv; d += 16) {
            const int n = dv - d < 16 ? (int)(dv - d) : 16;
            __m256i low = load_part(v + d, n);
            __m256i high = j + 1 < nk ? load_part(v + ldv + d, n) : _mm256_setzero_si256();
            _mm512_mask_storeu_epi32(dst + d, (__mmask16)((1u << n) - 1u),
                                     interleave(low, high));
        }
}

static RV_INLINE void value_block(const uint32_t *p, const uint32_t *v, ptrdiff_t ldv,
                                  int pairs, float *o, const int DB, const int VECS)
{
    __m512 acc[RV_KEY_BLOCK][2];
    const int cols = VECS * 16;
    RV_UNROLL for (int b = 0; b < DB; b++) RV_UNROLL for (int c = 0; c < VECS; c++)
        acc[b][c] = _mm512_setzero_ps();
    for (int j = 0; j < pairs; j++, v += ldv) {
        __m512bh x[2];
        RV_UNROLL for (int c = 0; c < VECS; c++)
            x[c] = (__m512bh)_mm512_loadu_si512(p + j * cols + c * 16);
        RV_UNROLL for (int b = 0; b < DB; b++) {
            __m512bh y = (__m512bh)_mm512_set1_epi32((int)v[b]);
            RV_UNROLL for (int c = 0; c < VECS; c++)
                acc[b][c] = _mm512_dpbf16_ps(acc[b][c], y, x[c]);
        }
    }
    RV_UNROLL for (int b = 0; b < DB; b++) RV_UNROLL for (int c = 0; c < VECS; c++)
        vf_store(o + b * cols + c * 16, vf_add(vf_load(o + b * cols + c * 16), acc[b][c]));
}

static void accumulate(const void *p_, int cols, const void *v_, ptrdiff_t ldv, int nk,
                       ptrdiff_t dv, void *o_)
{
    const float *p = p_;
    const uint32_t *v = v_;
    float *o = o_;
    uint32_t paired[RV_KEY_TILE / 2 * 32];
    /* Two rows of p become one row of pairs: converted side by side, then shuffled. */
    const __m512i zip = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
        4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int j = 0; j < nk; j += 2)
        for (int c = 0; c < cols; c += 16) {
            vf low = vf_load(p + j * cols + c);
            vf high = j + 1 < nk ? vf_load(p + (j + 1) * cols + c) : vf_set1(0);
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            _mm512_storeu_si512(paired + j / 2 * cols + c, _mm512_permutexvar_epi16(zip, both));
        }
#define RV_CALL_WIDE(i, n) value_block(paired, v + (i), ldv, PAIRS(nk), o + (i) * 32, n, 2);
#define RV_CALL_ONE(i, n) value_block(paired, v + (i), ldv, PAIRS(nk), o + (i) * 16, n, 1);
    if (cols > 16) RV_FOR_BLOCKS(dv, RV_CALL_WIDE)
    else RV_FOR_BLOCKS(dv, RV_CALL_ONE)
#undef RV_CALL_WIDE
#undef RV_CALL_ONE
}

static void accumulate_visible(const void *p_, const void *scores_, int cols, const void *v_,
                               ptrdiff_t ldv, int nk, ptrdiff_t dv, void *o_)
{
    const float *p = p_, *s = scores_;
    const uint32_t *v = v_;
    float *o = o_;
    const vf hidden = vf_set1(-INFINITY);
    for (int j = 0; j < nk; j++)
        for (ptrdiff_t d = 0; d < dv; d++) {
            const uint32_t pair = v[j / 2 * ldv + d];
            const uint32_t bits = j & 1 ? pair & 0xffff0000u : pair << 16;
            const vf x = _mm512_castsi512_ps(_mm512_set1_epi32((int)bits));
            for (int c = 0; c < cols; c += 16) {
                vf before = vf_load(o + d * cols + c);
                vf after = vf_fma(x, vf_load(p + j * cols + c), before);
                vfm unseen = vf_eq(vf_load(s + j * cols + c), hidden);
                vf_store(o + d * cols + c, vf_select(unseen, before, after));
            }
        }
}

static rv_softmax_tiles tiles;
static rv_table table;

const rv_table *rv_make_table_avx512_bf16(void)
{
    table = rv_table_avx512;
    tiles = *table.softmax[RV_BF16];
    tiles.pack = pack;
    tiles.load_keys = NULL;
    tiles.load_values = load_values;
    tiles.scores = scores;
    tiles.accumulate = accumulate;
    tiles.accumulate_visible = accumulate_visible;
    table.isa = "avx512_bf16";
    table.softmax[RV_BF16] = &tiles;
    return &table;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int rv_isa_avx512_bf16_is_empty;
#endif
