/* A row of floats as whole numbers and a scale, symmetric about 0.
 *
 *   scale = max |x| / 127        out = round(x / scale), half to even
 *
 * (Dettmers et al. 2022, arXiv 2208.07339.) The quotient is formed in double, where no tie is
 * missed, and rounded by adding 1.5 * 2^52, below which a double has no fraction. Plain loops,
 * which compilers turn into the instruction set's vectors.
 */

static RV_INLINE uint32_t RV_NAME(f32, magnitude)(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffffu; /* ordered as the numbers are, infinity and NaN behind */
}

/* Does any |x| lie in [low, high), the bits of two floats? */
static int RV_NAME(f32, any_between)(const float *x, ptrdiff_t n, uint32_t low, uint32_t high)
{
    uint32_t found = 0;
    for (ptrdiff_t d = 0; d < n; d++) {
        const uint32_t a = RV_NAME(f32, magnitude)(x[d]);
        found |= (a >= low) & (a < high);
    }
    return (int)found;
}

/* Returns 0 where x holds a number that is not finite. */
static int RV_NAME(f32, quantize)(const float *x, ptrdiff_t n, int8_t *out, float *scale)
{
    const double shift = 6755399441055744.0;
    uint32_t top = 0;
    float largest;
    for (ptrdiff_t d = 0; d < n; d++) {
        const uint32_t a = RV_NAME(f32, magnitude)(x[d]);
        top = a > top ? a : top;
    }
    if (top >= 0x7f800000u) return 0;
    memcpy(&largest, &top, sizeof largest);
    *scale = largest / 127;
    if (*scale == 0) {
        memset(out, 0, (size_t)n);
        return 1;
    }
    const double divisor = *scale;
    for (ptrdiff_t d = 0; d < n; d++) {
        /* A subnormal scale has lost digits, and the quotient may be a little more. */
        double y = x[d] / divisor;
        y = y < 127 ? (y > -127 ? y : -127) : 127;
        y += shift;
        out[d] = (int8_t)(y - shift);
    }
    return 1;
}
