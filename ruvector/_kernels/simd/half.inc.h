/* Parts of a vector of narrow numbers: the whole-vector conversions through a small buffer. */

static RV_INLINE vf vf_load_f16_n(const uint16_t *p, int n)
{
    uint16_t bits[VF_LANES] = {0};
    for (int i = 0; i < n; i++) bits[i] = p[i];
    return vf_load_f16(bits);
}

static RV_INLINE vf vf_load_bf16_n(const uint16_t *p, int n)
{
    uint16_t bits[VF_LANES] = {0};
    for (int i = 0; i < n; i++) bits[i] = p[i];
    return vf_load_bf16(bits);
}

static RV_INLINE vf vf_load_i8_n(const int8_t *p, int n)
{
    int8_t x[VF_LANES] = {0};
    for (int i = 0; i < n; i++) x[i] = p[i];
    return vf_load_i8(x);
}

static RV_INLINE void vf_store_f16_n(uint16_t *p, vf x, int n)
{
    uint16_t bits[VF_LANES];
    vf_store_f16(bits, x);
    for (int i = 0; i < n; i++) p[i] = bits[i];
}

static RV_INLINE void vf_store_bf16_n(uint16_t *p, vf x, int n)
{
    uint16_t bits[VF_LANES];
    vf_store_bf16(bits, x);
    for (int i = 0; i < n; i++) p[i] = bits[i];
}
