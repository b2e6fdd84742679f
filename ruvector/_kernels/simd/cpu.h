/* What the CPU offers and the operating system lets us use. */
#ifndef RV_CPU_H
#define RV_CPU_H

typedef struct rv_cpu {
    int avx2;        /* AVX2, FMA, F16C */
    int avx512;      /* AVX-512 F, DQ, BW, VL beside them */
    int avx512_bf16; /* VDPBF16PS */
} rv_cpu;

rv_cpu rv_detect_cpu(void);

#endif
