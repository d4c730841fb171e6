/* The lanes of four sums → four scores, for both versions of x86 (attention_vector.h). */
#ifndef PRIMELENS_ATTENTION_AVX_H
#define PRIMELENS_ATTENTION_AVX_H

#include <immintrin.h>

/* The lower and the upper half of 8 lanes, added. */
static inline __attribute__((always_inline)) __m256d halves(const double *sums) {
    return _mm256_add_pd(_mm256_loadu_pd(sums), _mm256_loadu_pd(sums + 4));
}

static inline __attribute__((always_inline)) void fold_keys(const void *lanes, double scale, float *to) {
    const double *sums = lanes;
    const __m256d a = _mm256_hadd_pd(halves(sums), halves(sums + 8));
    const __m256d b = _mm256_hadd_pd(halves(sums + 16), halves(sums + 24));
    const __m256d first = _mm256_permute2f128_pd(a, b, 0x20);
    const __m256d second = _mm256_permute2f128_pd(a, b, 0x31);
    const __m256d whole = _mm256_mul_pd(_mm256_add_pd(first, second), _mm256_set1_pd(scale));
    _mm_storeu_ps(to, _mm256_cvtpd_ps(whole));
}

#endif
