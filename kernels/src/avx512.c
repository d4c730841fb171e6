/* AVX-512 with VNNI: `vpdpbusd` multiplies four unsigned bytes (weights) with four signed ones
 * (the row, broadcast) and adds them to an int32 lane, exactly.
 *
 * A tile is up to 16 rows x 1 panel or 12 x 2 (8 bits), or 12 x 1 (4 bits); its sums stay in
 * registers. The weights' offset of 128 (or 8) is paid for at the start: each sum begins at minus
 * offset times the row's sum.
 */
#if defined(__x86_64__)
#include <immintrin.h>

#define PL_LANES 16
#define PL_MOST(a, b) ((pl_floats)_mm512_max_ps(a, b))
#define PL_LEAST(a, b) ((pl_floats)_mm512_min_ps(a, b))
#define PL_WIDEN(from) ((pl_doubles)_mm512_cvtps_pd(_mm256_loadu_ps(from)))
#define PL_FMA(a, b, c) ((pl_doubles)_mm512_fmadd_pd(a, b, c))
#define PL_FOLD fold_keys
#define PL_ROWS 3
#define PL_SPAN 4
#define PL_FIXED 64
#include "vector.h"

#include "attention_avx.h"
#include "attention_vector.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

enum { MOST_ROWS1 = 16, MOST_ROWS2 = 12, MOST_ROWS4 = 12, MOST_SUMS = 24 };

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

/* Sums [rows][panels] of a tile → y. Not inlined: it would be the greater part of every tile. */
static __attribute__((noinline)) void finish(const pl_product *p, size_t row, size_t rows,
                                             size_t panel, size_t panels, const __m512i *sums) {
    const size_t first = panel * PL_PANEL, y_stride = p->y_stride;
    const float *row_scale = p->a_scale + row;
    const int biased = p->bias != NULL, whole = first + panels * PL_PANEL <= p->n;
    for (size_t c = 0; whole && c < panels; c++) {
        const size_t column = first + c * PL_PANEL;
        const __m512 scale = _mm512_loadu_ps(p->w_scale + column);
        const __m512 bias = biased ? _mm512_loadu_ps(p->bias + column) : _mm512_setzero_ps();
        float *y = p->y + row * y_stride + column;
        for (size_t r = 0; r < rows; r++, y += y_stride) {
            const __m512 sum = _mm512_cvtepi32_ps(sums[r * panels + c]);
            __m512 v = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(row_scale[r])), scale);
            if (biased) v = _mm512_add_ps(v, bias);
            _mm512_storeu_ps(y, v);
        }
    }
    for (size_t i = 0; !whole && i < rows * panels; i++) {
        const pl_floats sum = _mm512_cvtepi32_ps(sums[i]);
        pl_finish(p, row + i / panels, panel + i % panels, &sum);
    }
    if (p->activation) pl_activate_tile(p, row, rows, panel, panels);
}

/* The more rows a line serves, the fewer lines fit the processor's own view ahead. Distances by
 * measurement; with one row any of them is a loss. `rows` as for 8 bits. */
INLINE void look_ahead(const uint8_t *w, const int rows) {
    if (rows > 8)
        _mm_prefetch((const char *)w + 4096, _MM_HINT_T0);
    else if (rows > 1)
        _mm_prefetch((const char *)w + 8192, _MM_HINT_T1);
}

/* Where the first four bytes of a row lie, and how far from there the next four. One pointer serves
 * all rows of a tile; with a row after the other there are more rows than registers for addresses. */
typedef struct {
    const int8_t *bytes;
    size_t step;
} rows_of;

INLINE rows_of find_rows(const pl_product *p, size_t row) {
    const size_t tile = pl_tile_rows(p->m), first = row / tile * tile;
    return (rows_of){p->a + first * p->k + 4 * (row - first), 4 * pl_least(tile, p->m - first)};
}

/* Every loop over rows and panels is unrolled whole, or else the sums would not stay in registers. */
INLINE void tile8(const pl_product *p, size_t row, size_t panel, const int rows, const int panels) {
    const size_t stride = p->k * PL_PANEL;
    const uint8_t *w = p->w + panel * stride;
    const rows_of a = find_rows(p, row);
    __m512i sum[MOST_SUMS];
    float *y = p->y + row * p->y_stride + panel * PL_PANEL;
    UNROLL for (int r = 0; r < rows; r++) /* the lines that will be written arrive meanwhile */
        UNROLL for (int c = 0; c < panels; c++)
            __builtin_prefetch(y + (size_t)r * p->y_stride + c * PL_PANEL, 1);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < panels; c++)
            sum[r * panels + c] = _mm512_set1_epi32(p->a_offset[row + (size_t)r]);
    for (size_t k = 0; k < p->k; k += 4) {
        __m512i part[2];
        if (panels == 1) look_ahead(w + k * PL_PANEL, rows);
        UNROLL for (int c = 0; c < panels; c++)
            part[c] = _mm512_loadu_si512(w + (size_t)c * stride + k * PL_PANEL);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512i x = four(a.bytes + k / 4 * a.step + 4 * r);
            UNROLL for (int c = 0; c < panels; c++)
                sum[r * panels + c] = _mm512_dpbusd_epi32(sum[r * panels + c], part[c], x);
        }
    }
    __m512i sums[MOST_SUMS];
    UNROLL for (int i = 0; i < rows * panels; i++) sums[i] = sum[i];
    finish(p, row, (size_t)rows, panel, (size_t)panels, sums);
}

/* A block's products fit 16 bits (32 * 7 * 127), so `vpdpwssd` multiplies them with the block's
 * multipliers, whose upper halves are zero, and adds them in one go. */
INLINE void tile4(const pl_product *p, size_t row, size_t panel, const int rows) {
    const size_t blocks = p->k / PL_BLOCK;
    const rows_of rows_a = find_rows(p, row);
    const size_t step = rows_a.step;
    const uint8_t *w = p->w + panel * blocks * 256;
    const uint8_t *m = p->w_multiplier + panel * blocks * PL_PANEL;
    const __m512i low = _mm512_set1_epi8(15);
    __m512i sum[MOST_ROWS4];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = _mm512_setzero_si512();
    for (size_t b = 0; b < blocks; b++, w += 256, m += PL_PANEL) {
        const int8_t *a = rows_a.bytes + b * 8 * step;
        __m512i part[MOST_ROWS4];
        UNROLL for (int r = 0; r < rows; r++)
            part[r] = _mm512_set1_epi32(p->a_offset[(row + (size_t)r) * blocks + b]);
        UNROLL for (int g = 0; g < 4; g++) {
            look_ahead(w + g * 64, 2 * rows - 1);
            const __m512i pairs = _mm512_loadu_si512(w + g * 64);
            const __m512i first = _mm512_and_si512(pairs, low);
            const __m512i second = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
            UNROLL for (int r = 0; r < rows; r++) {
                part[r] = _mm512_dpbusd_epi32(part[r], first, four(a + g * step + 4 * r));
                part[r] = _mm512_dpbusd_epi32(part[r], second, four(a + (g + 4) * step + 4 * r));
            }
        }
        const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)m));
        UNROLL for (int r = 0; r < rows; r++) sum[r] = _mm512_dpwssd_epi32(sum[r], part[r], wide);
    }
    __m512i sums[MOST_ROWS4];
    UNROLL for (int r = 0; r < rows; r++) sums[r] = sum[r];
    finish(p, row, (size_t)rows, panel, 1, sums);
}

/* One panel of 4 bits as one of 8. */
static void unpack(const uint8_t *w, const uint8_t *m, size_t blocks, uint8_t *out) {
    const __m512i low = _mm512_set1_epi8(15), even = _mm512_set1_epi16(255);
    for (size_t b = 0; b < blocks; b++, w += 256, m += PL_PANEL, out += 512) {
        const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)m));
        const __m512i both = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16));
        const __m512i base = _mm512_sub_epi16(_mm512_set1_epi16(128), _mm512_slli_epi16(both, 3));
        UNROLL for (int g = 0; g < 4; g++) {
            const __m512i pairs = _mm512_loadu_si512(w + g * 64);
            UNROLL for (int h = 0; h < 2; h++) {
                const __m512i v = _mm512_and_si512(_mm512_srli_epi16(pairs, 4 * h), low);
                const __m512i near = _mm512_mullo_epi16(_mm512_and_si512(v, even), both);
                const __m512i far = _mm512_mullo_epi16(_mm512_srli_epi16(v, 8), both);
                const __m512i high = _mm512_slli_epi16(_mm512_add_epi16(far, base), 8);
                const __m512i made = _mm512_or_si512(_mm512_add_epi16(near, base), high);
                _mm512_storeu_si512(out + (g + 4 * h) * 64, made);
            }
        }
    }
}

/* Tiles by their number of rows. One panel: a single stream through the weights, which memory serves
 * best. Two panels: half the loads, for rows that are many. */
typedef void tile(const pl_product *p, size_t row, size_t panel);

#define TILE8(rows, panels)                                                                     \
    static void tile8_##rows##x##panels(const pl_product *p, size_t row, size_t panel) {        \
        tile8(p, row, panel, rows, panels);                                                     \
    }
#define TILE4(rows)                                                                             \
    static void tile4_##rows(const pl_product *p, size_t row, size_t panel) {                   \
        tile4(p, row, panel, rows);                                                             \
    }
#define TO_12(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#define TILES(rows) TILE8(rows, 1) TILE8(rows, 2) TILE4(rows)
TO_12(TILES) TILE8(13, 1) TILE8(14, 1) TILE8(15, 1) TILE8(16, 1)

#define ONE(rows) tile8_##rows##x1,
#define TWO(rows) tile8_##rows##x2,
#define FOUR_BITS(rows) tile4_##rows,
static tile *const one_panel[] = {TO_12(ONE) ONE(13) ONE(14) ONE(15) ONE(16)};
static tile *const two_panels[] = {TO_12(TWO)};
static tile *const four_bits[] = {TO_12(FOUR_BITS)};

static void product8(const pl_product *p, const pl_part *part) {
    const size_t count = part->last_row - part->first_row, last = part->last_row;
    size_t panel = part->first_panel;
    if (count > MOST_ROWS1)
        for (; panel + 2 <= part->last_panel; panel += 2)
            for (size_t row = part->first_row, rows; row < last; row += rows) {
                rows = pl_least(MOST_ROWS2, last - row);
                two_panels[rows - 1](p, row, panel);
            }
    for (; panel < part->last_panel; panel++)
        for (size_t row = part->first_row, rows; row < last; row += rows) {
            rows = pl_least(pl_tile_rows(p->m), last - row);
            one_panel[rows - 1](p, row, panel);
        }
}

/* Many rows: a few panels at a time become 8 bits, once for all rows. */
static int product4_as_8(const pl_product *p, const pl_part *part) {
    const size_t blocks = p->k / PL_BLOCK, rows = part->last_row - part->first_row;
    const size_t panel_bytes = p->k * PL_PANEL;
    uint8_t *memory = malloc(2 * panel_bytes + rows * sizeof(int32_t));
    if (!memory) return 0;
    int32_t *offsets = (int32_t *)(memory + 2 * panel_bytes);
    for (size_t r = 0; r < rows; r++) {
        const int32_t *of_blocks = p->a_offset + (part->first_row + r) * blocks;
        int32_t total = 0;
        for (size_t b = 0; b < blocks; b++) total += of_blocks[b];
        offsets[r] = 16 * total; /* -8 times a sum → -128 times */
    }
    for (size_t panel = part->first_panel; panel < part->last_panel; panel += 2) {
        const size_t panels = pl_least(2, part->last_panel - panel), column = panel * PL_PANEL;
        for (size_t c = 0; c < panels; c++)
            unpack(p->w + (panel + c) * blocks * 256,
                   p->w_multiplier + (panel + c) * blocks * PL_PANEL, blocks,
                   memory + c * panel_bytes);
        pl_product whole = *p; /* these panels alone; rows keep their place in y */
        whole.m = p->m - part->first_row, whole.a += part->first_row * p->k;
        whole.a_scale += part->first_row, whole.a_offset = offsets, whole.w = memory;
        whole.n = pl_least(panels * PL_PANEL, p->n - column), whole.w_scale += column;
        if (p->bias) whole.bias += column;
        whole.y += part->first_row * p->y_stride + column;
        product8(&whole, &(pl_part){0, rows, 0, panels});
    }
    free(memory);
    return 1;
}

static void product4(const pl_product *p, const pl_part *part) {
    const size_t last = part->last_row;
    if (last - part->first_row > 2 * MOST_ROWS4 && product4_as_8(p, part)) return;
    for (size_t panel = part->first_panel; panel < part->last_panel; panel++)
        for (size_t row = part->first_row, rows; row < last; row += rows) {
            rows = pl_least(MOST_ROWS4, last - row);
            four_bits[rows - 1](p, row, panel);
        }
}

const pl_version pl_avx512 = {"avx512-vnni", 1, round_row, product8, product4, pl_reduce, pl_attend};
#endif
