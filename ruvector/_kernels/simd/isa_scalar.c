/* Plain C for every CPU; four-lane loops that a compiler can turn into its baseline's SIMD. */
#include "vec_scalar.h"
#include "isa.inc.h"
