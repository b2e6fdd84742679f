/* How a count of keys or of value columns is cut into register blocks. */
#ifndef RV_BLOCKS_H
#define RV_BLOCKS_H

#define RV_KEY_TILE 96 /* keys in one tile of scores: a whole number of every RV_KEY_BLOCK */

/* Run CALL(start, n) over `total` in blocks of RV_KEY_BLOCK. What is left over goes in blocks
 * of two thirds of that, and smaller: 64 = 4 x 12 + 2 x 8 keeps more chains of multiply-adds
 * in flight than 5 x 12 + 4 would. */
#define RV_FOR_BLOCKS(total, CALL)                                                           \
    {                                                                                        \
        const ptrdiff_t n_ = (total);                                                        \
        ptrdiff_t i_ = 0;                                                                    \
        for (; n_ - i_ >= RV_KEY_BLOCK && n_ - i_ != 2 * RV_REST_BLOCK; i_ += RV_KEY_BLOCK)  \
            CALL(i_, RV_KEY_BLOCK)                                                           \
        for (; n_ - i_ >= RV_REST_BLOCK; i_ += RV_REST_BLOCK) CALL(i_, RV_REST_BLOCK)        \
        if (RV_REST_BLOCK > 4 && n_ - i_ >= 4) { CALL(i_, 4) i_ += 4; }                      \
        if (n_ - i_ >= 2) { CALL(i_, 2) i_ += 2; }                                           \
        if (n_ - i_ >= 1) CALL(i_, 1)                                                        \
    }

#endif
