/* AVX-512 with VNNI: `vpdpbusd` multiplies four unsigned bytes (weights) with four signed ones
 * (the row, broadcast) and adds them to an int32 lane, exactly.
 *
 * A tile is up to 6 rows x 4 panels (8 bits) or 6 x 2 (4 bits); its sums stay in registers. The
 * weights' offset of 128 (or 8) is paid for at the start: each sum begins at minus offset times
 * the row's sum.
 */
#if defined(__x86_64__)
#include <immintrin.h>

#define PL_LANES 16
#define PL_MOST(a, b) ((pl_floats)_mm512_max_ps(a, b))
#define PL_LEAST(a, b) ((pl_floats)_mm512_min_ps(a, b))
#include "vector.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { ROWS = 6, PANELS8 = 4, PANELS4 = 2 };

INLINE __mmask16 tail(size_t count) { return (__mmask16)((1u << count) - 1); }

static void round_row(const float *x, size_t k, int8_t *a, float *scale, int32_t *sum) {
    const __m512i positive = _mm512_set1_epi32(0x7fffffff);
    const size_t whole = k / 16 * 16;
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < whole; i += 16) {
        const __m512i bits = _mm512_loadu_si512(x + i);
        largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, positive));
    }
    if (whole < k) {
        const __m512i bits = _mm512_maskz_loadu_epi32(tail(k - whole), x + whole);
        largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, positive));
    }
    const uint32_t most_bits = _mm512_reduce_max_epu32(largest);
    if (most_bits >= 0x7f800000u) {
        memset(a, 0, k);
        *scale = NAN;
        *sum = 0;
        return;
    }
    float most;
    memcpy(&most, &most_bits, sizeof most);
    if (most < 1e-30f) most = 1e-30f;
    const __m512 inverse = _mm512_set1_ps(127.0f / most);
    __m512i total = _mm512_setzero_si512();
    for (size_t i = 0; i < whole; i += 16) {
        const __m512i r = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
        total = _mm512_add_epi32(total, r);
        _mm_storeu_si128((__m128i *)(a + i), _mm512_cvtepi32_epi8(r));
    }
    if (whole < k) {
        const __mmask16 mask = tail(k - whole);
        const __m512 rest = _mm512_maskz_loadu_ps(mask, x + whole);
        const __m512i r = _mm512_cvtps_epi32(_mm512_mul_ps(rest, inverse));
        total = _mm512_add_epi32(total, r);
        _mm512_mask_cvtepi32_storeu_epi8(a + whole, mask, r);
    }
    *scale = most / 127.0f;
    *sum = _mm512_reduce_add_epi32(total);
}

INLINE __m512i four(const int8_t *a) {
    int32_t bytes;
    memcpy(&bytes, a, sizeof bytes);
    return _mm512_set1_epi32(bytes);
}

INLINE void finish(const pl_product *p, size_t row, size_t panel, __m512i sum) {
    const pl_floats sums[1] = {_mm512_cvtepi32_ps(sum)};
    pl_finish(p, row, panel, sums);
}

INLINE void tile8(const pl_product *p, size_t row, size_t panel, const int rows, const int panels) {
    const size_t stride = p->k * PL_PANEL;
    const uint8_t *w = p->w + panel * stride;
    const int8_t *a = p->a + row * p->k;
    __m512i sum[ROWS][PANELS8];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < panels; c++)
            sum[r][c] = _mm512_set1_epi32(-128 * p->a_sum[row + (size_t)r]);
    for (size_t k = 0; k < p->k; k += 4) {
        __m512i part[PANELS8];
        UNROLL for (int c = 0; c < panels; c++)
            part[c] = _mm512_loadu_si512(w + (size_t)c * stride + k * PL_PANEL);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512i x = four(a + (size_t)r * p->k + k);
            UNROLL for (int c = 0; c < panels; c++)
                sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], part[c], x);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < panels; c++)
            finish(p, row + (size_t)r, panel + (size_t)c, sum[r][c]);
}

/* A block's products fit 16 bits (32 * 7 * 127), so `vpdpwssd` multiplies them with the block's
 * multipliers, whose upper halves are zero, and adds them in one go. */
INLINE void tile4(const pl_product *p, size_t row, size_t panel, const int rows, const int panels) {
    const size_t blocks = p->k / PL_BLOCK;
    const __m512i low = _mm512_set1_epi8(15);
    __m512i sum[ROWS][PANELS4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < panels; c++) sum[r][c] = _mm512_setzero_si512();
    for (size_t b = 0; b < blocks; b++) {
        const int8_t *a = p->a + row * p->k + b * PL_BLOCK;
        __m512i part[ROWS][PANELS4];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int c = 0; c < panels; c++)
                part[r][c] = _mm512_set1_epi32(-8 * p->a_sum[(row + (size_t)r) * blocks + b]);
        UNROLL for (int g = 0; g < 4; g++) {
            __m512i first[PANELS4], second[PANELS4];
            UNROLL for (int c = 0; c < panels; c++) {
                const uint8_t *w = p->w + ((panel + (size_t)c) * blocks + b) * 256 + g * 64;
                const __m512i pairs = _mm512_loadu_si512(w);
                first[c] = _mm512_and_si512(pairs, low);
                second[c] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                const int8_t *bytes = a + (size_t)r * p->k + g * 4;
                const __m512i x = four(bytes), later = four(bytes + 16);
                UNROLL for (int c = 0; c < panels; c++) {
                    part[r][c] = _mm512_dpbusd_epi32(part[r][c], first[c], x);
                    part[r][c] = _mm512_dpbusd_epi32(part[r][c], second[c], later);
                }
            }
        }
        UNROLL for (int c = 0; c < panels; c++) {
            const uint8_t *m = p->w_multiplier + ((panel + (size_t)c) * blocks + b) * PL_PANEL;
            const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)m));
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][c] = _mm512_dpwssd_epi32(sum[r][c], part[r][c], wide);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < panels; c++)
            finish(p, row + (size_t)r, panel + (size_t)c, sum[r][c]);
}

#define EVERY_ROWS(tile, panels)                              \
    switch (rows) {                                           \
        case 1: tile(p, row, panel, 1, panels); break;        \
        case 2: tile(p, row, panel, 2, panels); break;        \
        case 3: tile(p, row, panel, 3, panels); break;        \
        case 4: tile(p, row, panel, 4, panels); break;        \
        case 5: tile(p, row, panel, 5, panels); break;        \
        default: tile(p, row, panel, 6, panels); break;       \
    }

/* The weights of a group of panels are read once from memory, and for the further tiles of rows
 * from the second-level cache. */
#define PRODUCT(product, tile, panels)                                                      \
    static void product(const pl_product *p, const pl_part *part) {                         \
        size_t panel = part->first_panel;                                                   \
        while (panel < part->last_panel) {                                                  \
            const int whole = panel + panels <= part->last_panel;                           \
            for (size_t row = part->first_row; row < part->last_row; row += ROWS) {         \
                const size_t rows = pl_least(ROWS, part->last_row - row);                   \
                if (whole)                                                                  \
                    EVERY_ROWS(tile, panels)                                                \
                else                                                                        \
                    EVERY_ROWS(tile, 1)                                                     \
                if (p->activation)                                                          \
                    pl_activate_tile(p, row, rows, panel, whole ? panels : 1);              \
            }                                                                               \
            panel += whole ? panels : 1;                                                    \
        }                                                                                   \
    }

PRODUCT(product8, tile8, PANELS8)
PRODUCT(product4, tile4, PANELS4)

const pl_version pl_avx512 = {"avx512-vnni", round_row, product8, product4, pl_reduce};
#endif
