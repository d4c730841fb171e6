/* AVX2. 8 bits: `vpmaddwd` multiplies pairs of 16 bits and adds them in 32, exactly; weights become
 * 16 bits in two operations for all rows of a tile, rows once for all panels. (`vpmaddubsw` of |w|
 * and rows under w's sign is exact too, but takes a third more multiplications and shuffles.)
 * 4 bits: `vpmaddubsw`, whose sums of pairs fit 16 bits eight times.
 *
 * A tile is up to 4 rows x 1 panel, as two vectors of 8 columns.
 */
#if defined(__x86_64__)
#include <immintrin.h>

#define PL_LANES 8
#define PL_MOST(a, b) ((pl_floats)_mm256_max_ps(a, b))
#define PL_LEAST(a, b) ((pl_floats)_mm256_min_ps(a, b))
#define PL_WIDEN(from) ((pl_doubles)_mm256_cvtps_pd(_mm_loadu_ps(from)))
#define PL_FMA(a, b, c) ((pl_doubles)_mm256_fmadd_pd(a, b, c))
#define PL_FOLD fold_keys
#define PL_ROWS 2
#define PL_SPAN 4
#include "vector.h"

#include "attention_avx.h"
#include "attention_vector.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

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

INLINE __m256i four(const void *from) {
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return _mm256_set1_epi32(bytes);
}

/* Sums [rows][2] of a tile → y. Not inlined: it would be the greater part of every tile. */
static __attribute__((noinline)) void finish(const pl_product *p, size_t row, size_t rows,
                                             size_t panel, const __m256i *sums) {
    for (size_t r = 0; r < rows; r++) {
        const pl_floats sum[2] = {_mm256_cvtepi32_ps(sums[2 * r]),
                                  _mm256_cvtepi32_ps(sums[2 * r + 1])};
        pl_finish(p, row + r, panel, sum);
    }
    if (p->activation) pl_activate_tile(p, row, rows, panel, 1);
}

/* Rows as 16 bits, in the order 0, 2, 1, 3 of each four: as `vpmaddwd` meets them in the weights. */
static void widen(const int8_t *a, size_t k, int16_t *out) {
    const size_t whole = k / 16 * 16;
    for (size_t i = 0; i < whole; i += 16) {
        const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(a + i)));
        const __m256i turned = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(v, 0xd8), 0xd8);
        _mm256_storeu_si256((__m256i *)(out + i), turned);
    }
    for (size_t i = whole; i < k; i += 4)
        out[i] = a[i], out[i + 1] = a[i + 2], out[i + 2] = a[i + 1], out[i + 3] = a[i + 3];
}

/* Every loop over rows is unrolled whole, or else the sums would not stay in registers. */
INLINE void tile8(const pl_product *p, const int16_t *a, size_t row, size_t panel, const int rows) {
    const uint8_t *w = p->w + panel * p->k * PL_PANEL;
    const size_t width = p->k;
    const __m256i byte = _mm256_set1_epi16(255);
    __m256i sum[2 * ROWS];
    UNROLL for (int r = 0; r < rows; r++)
        sum[2 * r] = sum[2 * r + 1] = _mm256_set1_epi32(p->a_offset[row + (size_t)r]);
    for (size_t k = 0; k < width; k += 4) {
        if (rows > 1) _mm_prefetch((const char *)w + k * PL_PANEL + 8192, _MM_HINT_T1);
        const __m256i left = _mm256_loadu_si256((const __m256i *)(w + k * PL_PANEL));
        const __m256i right = _mm256_loadu_si256((const __m256i *)(w + k * PL_PANEL) + 1);
        const __m256i even[2] = {_mm256_and_si256(left, byte), _mm256_and_si256(right, byte)};
        const __m256i odd[2] = {_mm256_srli_epi16(left, 8), _mm256_srli_epi16(right, 8)};
        UNROLL for (int r = 0; r < rows; r++) {
            const __m256i first = four(a + (size_t)r * width + k);
            const __m256i second = four(a + (size_t)r * width + k + 2);
            UNROLL for (int h = 0; h < 2; h++) {
                __m256i s = sum[2 * r + h];
                s = _mm256_add_epi32(s, _mm256_madd_epi16(even[h], first));
                sum[2 * r + h] = _mm256_add_epi32(s, _mm256_madd_epi16(odd[h], second));
            }
        }
    }
    __m256i sums[2 * ROWS];
    UNROLL for (int i = 0; i < 2 * rows; i++) sums[i] = sum[i];
    finish(p, row, (size_t)rows, panel, sums);
}

/* v + 8 is at most 15: two pairs of 15 * 127 fit 16 bits eight times, so a block's groups are
 * added there (8 * 2 * 15 * 127 = 30480) before they are widened once. */
INLINE void half4(const pl_product *p, size_t row, size_t panel, const int rows, const int half,
                  __m256i *sums) {
    const size_t blocks = p->k / PL_BLOCK, a_stride = p->a_stride;
    const uint8_t *w = p->w + panel * blocks * 256 + 32 * half;
    const uint8_t *m = p->w_multiplier + panel * blocks * PL_PANEL + 8 * half;
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i sum[ROWS];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = _mm256_setzero_si256();
    for (size_t b = 0; b < blocks; b++, w += 256, m += PL_PANEL) {
        const int8_t *a = p->a + row * a_stride + b * PL_BLOCK;
        __m256i part[ROWS];
        UNROLL for (int r = 0; r < rows; r++) part[r] = _mm256_setzero_si256();
        UNROLL for (int g = 0; g < 4; g++) {
            if (rows > 1 && half == 0) _mm_prefetch((const char *)w + g * 64 + 8192, _MM_HINT_T1);
            const __m256i pairs = _mm256_loadu_si256((const __m256i *)(w + g * 64));
            const __m256i first = _mm256_and_si256(pairs, low);
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
            UNROLL for (int r = 0; r < rows; r++) {
                const int8_t *bytes = a + (size_t)r * a_stride + g * 4;
                const __m256i near = _mm256_maddubs_epi16(first, four(bytes));
                const __m256i far = _mm256_maddubs_epi16(second, four(bytes + 16));
                part[r] = _mm256_add_epi16(part[r], _mm256_add_epi16(near, far));
            }
        }
        const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)m));
        UNROLL for (int r = 0; r < rows; r++) {
            const __m256i offset = four(p->a_offset + (row + (size_t)r) * blocks + b);
            const __m256i dot = _mm256_add_epi32(_mm256_madd_epi16(part[r], ones), offset);
            sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(dot, wide));
        }
    }
    UNROLL for (int r = 0; r < rows; r++) sums[2 * r + half] = sum[r];
}

INLINE void tile4(const pl_product *p, size_t row, size_t panel, const int rows) {
    __m256i sums[2 * ROWS];
    half4(p, row, panel, rows, 0, sums);
    half4(p, row, panel, rows, 1, sums);
    finish(p, row, (size_t)rows, panel, sums);
}

#define TILES(rows)                                                                              \
    static __attribute__((noinline)) void tile8_##rows(const pl_product *p, const int16_t *a,    \
                                                       size_t row, size_t panel) {               \
        tile8(p, a, row, panel, rows);                                                           \
    }                                                                                            \
    static __attribute__((noinline)) void tile4_##rows(const pl_product *p, size_t row,          \
                                                       size_t panel) {                           \
        tile4(p, row, panel, rows);                                                              \
    }
TILES(1) TILES(2) TILES(3) TILES(4)

static void product8(const pl_product *p, const pl_part *part) {
    const size_t first = part->first_row, last = part->last_row;
    int16_t *wide = malloc((last - first) * p->k * sizeof *wide);
    if (!wide) {
        pl_portable.product8(p, part);
        return;
    }
    for (size_t row = first; row < last; row++)
        widen(p->a + row * p->a_stride, p->k, wide + (row - first) * p->k);
    for (size_t panel = part->first_panel; panel < part->last_panel; panel++)
        for (size_t row = first; row < last; row += ROWS) {
            const int16_t *a = wide + (row - first) * p->k;
            switch (last - row) {
                case 1: tile8_1(p, a, row, panel); break;
                case 2: tile8_2(p, a, row, panel); break;
                case 3: tile8_3(p, a, row, panel); break;
                default: tile8_4(p, a, row, panel); break;
            }
        }
    free(wide);
}

static void product4(const pl_product *p, const pl_part *part) {
    for (size_t panel = part->first_panel; panel < part->last_panel; panel++)
        for (size_t row = part->first_row; row < part->last_row; row += ROWS)
            switch (part->last_row - row) {
                case 1: tile4_1(p, row, panel); break;
                case 2: tile4_2(p, row, panel); break;
                case 3: tile4_3(p, row, panel); break;
                default: tile4_4(p, row, panel); break;
            }
}

const pl_version pl_avx2 = {"avx2", 0, round_row, product8, product4, pl_reduce, pl_attend};
#endif
