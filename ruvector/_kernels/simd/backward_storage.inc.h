/* Dot product of two stored rows. Parameters as in storage.inc.h. */

static double S(row_dot)(const void *a_, const void *b_, ptrdiff_t n)
{
    const ITEM *a = a_, *b = b_;
    RT sum = R(set1)(0);
    for (ptrdiff_t d = 0; d < n; d += LANES) {
        const int rest = n - d < LANES ? (int)(n - d) : LANES;
        RT x = rest < LANES ? LOAD_N(a + d, rest) : LOAD(a + d);
        RT y = rest < LANES ? LOAD_N(b + d, rest) : LOAD(b + d);
        sum = R(fma)(x, y, sum);
    }
    return R(sum)(sum);
}
