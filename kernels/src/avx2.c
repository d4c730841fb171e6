/* AVX2: `vpmaddubsw` multiplies unsigned with signed bytes and adds pairs in 16 bits, where it
 * saturates. It gets |w| and the row with the sign of w: |w| and |a| are at most 127, so a pair
 * is at most 2 * 127 * 127 = 32258 and no sum is ever cut off.
 *
 * A tile is up to 4 rows x 1 panel, as two vectors of 8 columns.
 */
#if defined(__x86_64__)
#include <immintrin.h>

#define PL_LANES 8
#define PL_MOST(a, b) ((pl_floats)_mm256_max_ps(a, b))
#define PL_LEAST(a, b) ((pl_floats)_mm256_min_ps(a, b))
#include "vector.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { ROWS = 4 };

INLINE uint32_t most_of(__m256i v) {
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

INLINE int32_t sum_of(__m256i v) {
    __m128i m = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtsi128_si32(m);
}

static void round_row(const float *x, size_t k, int8_t *a, float *scale, int32_t *sum) {
    const __m256i positive = _mm256_set1_epi32(0x7fffffff);
    const size_t whole = k / 8 * 8;
    __m256i found = _mm256_setzero_si256();
    for (size_t i = 0; i < whole; i += 8) {
        const __m256i bits = _mm256_loadu_si256((const __m256i *)(x + i));
        found = _mm256_max_epu32(found, _mm256_and_si256(bits, positive));
    }
    uint32_t largest = most_of(found);
    for (size_t i = whole; i < k; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        if (bits > largest) largest = bits;
    }
    if (largest >= 0x7f800000u) {
        memset(a, 0, k);
        *scale = NAN;
        *sum = 0;
        return;
    }
    float most;
    memcpy(&most, &largest, sizeof most);
    if (most < 1e-30f) most = 1e-30f;
    const float inverse = 127.0f / most;
    __m256i total = _mm256_setzero_si256();
    for (size_t i = 0; i < whole; i += 8) {
        const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse));
        const __m256i r = _mm256_cvtps_epi32(scaled);
        total = _mm256_add_epi32(total, r);
        const __m128i words =
            _mm_packs_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
        _mm_storel_epi64((__m128i *)(a + i), _mm_packs_epi16(words, words));
    }
    int32_t rest = 0;
    for (size_t i = whole; i < k; i++) {
        a[i] = (int8_t)_mm_cvtss_si32(_mm_set_ss(x[i] * inverse));
        rest += a[i];
    }
    *scale = most / 127.0f;
    *sum = sum_of(total) + rest;
}

INLINE __m256i four(const int8_t *a) {
    int32_t bytes;
    memcpy(&bytes, a, sizeof bytes);
    return _mm256_set1_epi32(bytes);
}

INLINE void finish(const pl_product *p, size_t row, size_t panel, const __m256i *sum) {
    const pl_floats sums[2] = {_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])};
    pl_finish(p, row, panel, sums);
}

/* sum + four products of w and x per lane, both signed, |.| at most 127 */
INLINE __m256i add_products(__m256i sum, __m256i w, __m256i w_size, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(w_size, _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE void tile8(const pl_product *p, size_t row, size_t panel, const int rows) {
    const uint8_t *w = p->w + panel * p->k * PL_PANEL;
    const int8_t *a = p->a + row * p->k;
    const __m256i offset = _mm256_set1_epi8((char)128);
    __m256i sum[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (size_t k = 0; k < p->k; k += 4) {
        const __m256i *at = (const __m256i *)(w + k * PL_PANEL);
        const __m256i left = _mm256_xor_si256(_mm256_loadu_si256(at), offset);
        const __m256i right = _mm256_xor_si256(_mm256_loadu_si256(at + 1), offset);
        const __m256i left_size = _mm256_abs_epi8(left), right_size = _mm256_abs_epi8(right);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m256i x = four(a + (size_t)r * p->k + k);
            sum[r][0] = add_products(sum[r][0], left, left_size, x);
            sum[r][1] = add_products(sum[r][1], right, right_size, x);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) finish(p, row + (size_t)r, panel, sum[r]);
}

/* v + 8 is at most 15: two pairs of 15 * 127 fit 16 bits eight times, so a block's groups are
 * added there (8 * 2 * 15 * 127 = 30480) before they are widened once. */
INLINE void tile4(const pl_product *p, size_t row, size_t panel, const int rows) {
    const size_t blocks = p->k / PL_BLOCK;
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i sum[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (size_t b = 0; b < blocks; b++) {
        const uint8_t *w = p->w + (panel * blocks + b) * 256;
        const uint8_t *m = p->w_multiplier + (panel * blocks + b) * PL_PANEL;
        const int8_t *a = p->a + row * p->k + b * PL_BLOCK;
        UNROLL for (int h = 0; h < 2; h++) {
            __m256i part[ROWS];
            UNROLL for (int r = 0; r < rows; r++) part[r] = _mm256_setzero_si256();
            UNROLL for (int g = 0; g < 4; g++) {
                const __m256i pairs = _mm256_loadu_si256((const __m256i *)(w + g * 64) + h);
                const __m256i first = _mm256_and_si256(pairs, low);
                const __m256i second = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
                UNROLL for (int r = 0; r < rows; r++) {
                    const int8_t *bytes = a + (size_t)r * p->k + g * 4;
                    const __m256i near = _mm256_maddubs_epi16(first, four(bytes));
                    const __m256i far = _mm256_maddubs_epi16(second, four(bytes + 16));
                    part[r] = _mm256_add_epi16(part[r], _mm256_add_epi16(near, far));
                }
            }
            const __m256i wide =
                _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(m + 8 * h)));
            UNROLL for (int r = 0; r < rows; r++) {
                const int32_t offset = -8 * p->a_sum[(row + (size_t)r) * blocks + b];
                const __m256i dot = _mm256_add_epi32(_mm256_madd_epi16(part[r], ones),
                                                     _mm256_set1_epi32(offset));
                sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_madd_epi16(dot, wide));
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) finish(p, row + (size_t)r, panel, sum[r]);
}

#define PRODUCT(product, tile)                                                            \
    static void product(const pl_product *p, const pl_part *part) {                       \
        for (size_t panel = part->first_panel; panel < part->last_panel; panel++)         \
            for (size_t row = part->first_row; row < part->last_row; row += ROWS) {       \
                const size_t rows = pl_least(ROWS, part->last_row - row);                 \
                switch (rows) {                                                           \
                    case 1: tile(p, row, panel, 1); break;                                \
                    case 2: tile(p, row, panel, 2); break;                                \
                    case 3: tile(p, row, panel, 3); break;                                \
                    default: tile(p, row, panel, 4); break;                               \
                }                                                                         \
                if (p->activation) pl_activate_tile(p, row, rows, panel, 1);              \
            }                                                                             \
    }

PRODUCT(product8, tile8)
PRODUCT(product4, tile4)

const pl_version pl_avx2 = {"avx2", round_row, product8, product4, pl_reduce};
#endif
