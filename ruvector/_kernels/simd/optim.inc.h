/* Steps of gradient descent over n numbers in place: every array is read once and written once.
 *
 *   SGD    d = g + decay p;  b = keep b + share d;  p -= rate (d + momentum b, or b)
 *   Adam   d = g + decay p;  m = beta1 m + (1 - beta1) d;  v = beta2 v + (1 - beta2) d^2
 *          p = shrink p - rate m / (root sqrt(v) + epsilon)
 *
 * A number's result depends on nothing but its own place in the arrays. REAL, RT, R, LANES and
 * T as in softmax.inc.h.
 *
 * A run begins with the numbers in front of the first whole vector of p: where arrays lie alike
 * (the optimisers lay out their own as p lies), no later access crosses a cache line, which is
 * worth a factor of 1.5 in the third-level cache. Prefetches cost 1.2 there and change nothing
 * in memory; nor do stores past the caches, because the lines have just been read.
 */

/* Up to LANES numbers at p, of which `left` are there; all lanes where `left` is LANES. */
static RV_INLINE RT T(optim_load)(const REAL *p, ptrdiff_t left)
{
    return left < LANES ? R(load_n)(p, (int)left) : R(load)(p);
}

static RV_INLINE void T(optim_store)(REAL *p, RT x, ptrdiff_t left)
{
    if (left < LANES) R(store_n)(p, x, (int)left);
    else R(store)(p, x);
}

/* How many of n numbers lie in front of the first whole vector at p. */
static RV_INLINE ptrdiff_t T(optim_head)(const REAL *p, ptrdiff_t n)
{
    const uintptr_t width = LANES * sizeof(REAL);
    const ptrdiff_t head = (ptrdiff_t)((0 - (uintptr_t)p) % width / sizeof(REAL));
    return head < n ? head : n;
}

/* Options as vectors, in registers over a whole run. */
typedef struct {
    RT rate, decay, keep, share, momentum;
} T(sgd_options);

typedef struct {
    RT rate, decay, shrink, beta1, rest1, beta2, rest2, root, epsilon;
} T(adam_options);

static RV_INLINE void T(sgd_vector)(REAL *p, const REAL *g, REAL *b, ptrdiff_t left,
                                    const T(sgd_options) *o, const int DECAY,
                                    const int MOMENTUM, const int NESTEROV)
{
    const RT x = T(optim_load)(p, left);
    RT d = T(optim_load)(g, left);
    if (DECAY) d = R(fma)(o->decay, x, d);
    if (MOMENTUM) {
        const RT kept = R(mul)(o->keep, T(optim_load)(b, left));
        const RT buffer = R(fma)(o->share, d, kept);
        T(optim_store)(b, buffer, left);
        d = NESTEROV ? R(fma)(o->momentum, buffer, d) : buffer;
    }
    T(optim_store)(p, R(fma)(o->rate, d, x), left);
}

static RV_INLINE void T(sgd_run)(REAL *p, const REAL *g, REAL *b, ptrdiff_t n,
                                 const rv_sgd *options, const int DECAY, const int MOMENTUM,
                                 const int NESTEROV)
{
    const T(sgd_options) o = {
        .rate = R(set1)((REAL)-options->rate),
        .decay = R(set1)((REAL)options->decay),
        .keep = R(set1)((REAL)options->keep),
        .share = R(set1)((REAL)options->share),
        .momentum = R(set1)((REAL)options->momentum),
    };
    ptrdiff_t i = T(optim_head)(p, n);
    if (i > 0) T(sgd_vector)(p, g, b, i, &o, DECAY, MOMENTUM, NESTEROV);
    for (; n - i >= LANES; i += LANES)
        T(sgd_vector)(p + i, g + i, b + i, LANES, &o, DECAY, MOMENTUM, NESTEROV);
    if (i < n) T(sgd_vector)(p + i, g + i, b + i, n - i, &o, DECAY, MOMENTUM, NESTEROV);
}

static void T(sgd)(void *p_, const void *g, void *b_, ptrdiff_t n, const rv_sgd *o)
{
    REAL *p = p_;
    if (b_ == NULL) {
        if (o->decay != 0) T(sgd_run)(p, g, p, n, o, 1, 0, 0);
        else T(sgd_run)(p, g, p, n, o, 0, 0, 0);
    } else if (o->nesterov) {
        if (o->decay != 0) T(sgd_run)(p, g, b_, n, o, 1, 1, 1);
        else T(sgd_run)(p, g, b_, n, o, 0, 1, 1);
    } else {
        if (o->decay != 0) T(sgd_run)(p, g, b_, n, o, 1, 1, 0);
        else T(sgd_run)(p, g, b_, n, o, 0, 1, 0);
    }
}

static RV_INLINE void T(adam_vector)(REAL *p, const REAL *g, REAL *m, REAL *v, REAL *peak,
                                     ptrdiff_t left, const T(adam_options) *o,
                                     const int DECAY, const int PEAK)
{
    const RT x = T(optim_load)(p, left);
    RT d = T(optim_load)(g, left);
    if (DECAY) d = R(fma)(o->decay, x, d);
    const RT kept1 = R(mul)(o->beta1, T(optim_load)(m, left));
    const RT kept2 = R(mul)(o->beta2, T(optim_load)(v, left));
    const RT first = R(fma)(o->rest1, d, kept1);
    RT second = R(fma)(R(mul)(o->rest2, d), d, kept2);
    T(optim_store)(m, first, left);
    T(optim_store)(v, second, left);
    if (PEAK) {
        /* The new one second, so that NaN is not passed over. */
        second = R(max)(T(optim_load)(peak, left), second);
        T(optim_store)(peak, second, left);
    }
    const RT scale = R(fma)(o->root, R(sqrt)(second), o->epsilon);
    T(optim_store)(p, R(fma)(o->rate, R(div)(first, scale), R(mul)(o->shrink, x)), left);
}

static RV_INLINE void T(adam_run)(REAL *p, const REAL *g, REAL *m, REAL *v, REAL *peak,
                                  ptrdiff_t n, const rv_adam *options, const int DECAY,
                                  const int PEAK)
{
    const T(adam_options) o = {
        .rate = R(set1)((REAL)-options->rate),
        .decay = R(set1)((REAL)options->decay),
        .shrink = R(set1)((REAL)options->shrink),
        .beta1 = R(set1)((REAL)options->beta1),
        .rest1 = R(set1)((REAL)(1 - options->beta1)),
        .beta2 = R(set1)((REAL)options->beta2),
        .rest2 = R(set1)((REAL)(1 - options->beta2)),
        .root = R(set1)((REAL)options->root),
        .epsilon = R(set1)((REAL)options->epsilon),
    };
    ptrdiff_t i = T(optim_head)(p, n);
    if (i > 0) T(adam_vector)(p, g, m, v, peak, i, &o, DECAY, PEAK);
    for (; n - i >= LANES; i += LANES)
        T(adam_vector)(p + i, g + i, m + i, v + i, peak + i, LANES, &o, DECAY, PEAK);
    if (i < n) T(adam_vector)(p + i, g + i, m + i, v + i, peak + i, n - i, &o, DECAY, PEAK);
}

static void T(adam)(void *p, const void *g, void *m, void *v, void *peak, ptrdiff_t n,
                    const rv_adam *o)
{
    if (peak == NULL) {
        if (o->decay != 0) T(adam_run)(p, g, m, v, p, n, o, 1, 0);
        else T(adam_run)(p, g, m, v, p, n, o, 0, 0);
    } else {
        if (o->decay != 0) T(adam_run)(p, g, m, v, peak, n, o, 1, 1);
        else T(adam_run)(p, g, m, v, peak, n, o, 0, 1);
    }
}

static const rv_optim_tiles T(optim) = {
    .real = sizeof(REAL),
    .sgd = T(sgd),
    .adam = T(adam),
};
