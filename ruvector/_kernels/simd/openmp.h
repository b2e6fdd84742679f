/* OpenMP where the build has it, one thread where it has not. */
#ifndef RV_OPENMP_H
#define RV_OPENMP_H

#ifdef _OPENMP
#include <omp.h>
#define RV_OPENMP 1
#else
#define RV_OPENMP 0
static inline int omp_get_max_threads(void) { return 1; }
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_in_parallel(void) { return 0; }
#endif

#endif
