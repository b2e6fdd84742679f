/* 2^x by 2^floor(x) P(x - floor(x)), P(r) = 1 + r Q(r) the minimax polynomial of 2^r on
 * [0, 1) with P(0) = 1 (Remez). Relative error of P: 8.3e-8 (float, degree 5), 3.3e-18
 * (double, degree 11); with its rounding below 2 ulp. Exact at integers; 0 below the
 * smallest normal number and at -inf; NaN stays NaN.
 */
static RV_INLINE vf vf_exp2(vf x)
{
    vf r, n = vf_floor_rest(x, &r);
    vf p = vf_set1(1.8671300819070082e-3f);
    p = vf_fma(p, r, vf_set1(9.0170302844367490e-3f));
    p = vf_fma(p, r, vf_set1(5.5799913145968067e-2f));
    p = vf_fma(p, r, vf_set1(2.4016445013606756e-1f));
    p = vf_fma(p, r, vf_set1(6.9315131180752295e-1f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_scale2(p, n);
}

static RV_INLINE vd vd_exp2(vd x)
{
    vd r, n = vd_floor_rest(x, &r);
    vd p = vd_set1(6.2634652734225902742e-10);
    p = vd_fma(p, r, vd_set1(6.5595298355172712178e-9));
    p = vd_fma(p, r, vd_set1(1.025321230405209001e-7));
    p = vd_fma(p, r, vd_set1(1.3208367308220049348e-6));
    p = vd_fma(p, r, vd_set1(1.525317505379524616e-5));
    p = vd_fma(p, r, vd_set1(1.5403512309733948746e-4));
    p = vd_fma(p, r, vd_set1(1.3333558629562675936e-3));
    p = vd_fma(p, r, vd_set1(9.6181290995508956128e-3));
    p = vd_fma(p, r, vd_set1(5.5504108665602238723e-2));
    p = vd_fma(p, r, vd_set1(2.4022650695906330315e-1));
    p = vd_fma(p, r, vd_set1(6.9314718055994592839e-1));
    p = vd_fma(p, r, vd_set1(1.0));
    return vd_scale2(p, n);
}
