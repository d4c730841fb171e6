/* NEON with dot product (aarch64): `sdot` multiplies four signed bytes of each lane with one lane
 * of the row and adds them to an int32 lane, exactly. Four vectors hold a panel's 16 columns.
 */
#if defined(__aarch64__)
#define PL_LANES 4
#define PL_WIDEN(from) ((pl_doubles)vcvt_f64_f32(vld1_f32(from)))
#define PL_FMA(a, b, c) ((pl_doubles)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#define PL_ROWS 2
#define PL_SPAN 4
#include "vector.h"

#include <arm_neon.h>

#include "attention_vector.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { ROWS = 4, QUARTERS = 4 };

static void round_row(const float *x, size_t k, int8_t *a, float *scale, int32_t *sum) {
    uint32x4_t found = vdupq_n_u32(0);
    for (size_t i = 0; i < k; i += 4) { /* k is a multiple of 4 */
        const uint32x4_t bits = vreinterpretq_u32_f32(vld1q_f32(x + i));
        found = vmaxq_u32(found, vandq_u32(bits, vdupq_n_u32(0x7fffffffu)));
    }
    const uint32_t largest = vmaxvq_u32(found);
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
    int32x4_t total = vdupq_n_s32(0);
    for (size_t i = 0; i < k; i += 4) {
        const int32x4_t r = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), inverse));
        const int16x4_t words = vqmovn_s32(r);
        const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
        vst1_lane_u32((uint32_t *)(void *)(a + i), vreinterpret_u32_s8(bytes), 0);
        total = vaddq_s32(total, r);
    }
    *scale = most / 127.0f;
    *sum = vaddvq_s32(total);
}

INLINE int8x16_t four(const int8_t *a) {
    int32_t bytes;
    memcpy(&bytes, a, sizeof bytes);
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
}

INLINE void finish(const pl_product *p, size_t row, size_t panel, const int32x4_t *sum) {
    pl_floats sums[QUARTERS];
    UNROLL for (int q = 0; q < QUARTERS; q++) sums[q] = (pl_floats)vcvtq_f32_s32(sum[q]);
    pl_finish(p, row, panel, sums);
}

INLINE void tile8(const pl_product *p, size_t row, size_t panel, const int rows) {
    const uint8_t *w = p->w + panel * p->k * PL_PANEL;
    const int8_t *a = p->a + row * p->a_stride;
    int32x4_t sum[ROWS][QUARTERS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int q = 0; q < QUARTERS; q++) sum[r][q] = vdupq_n_s32(0);
    for (size_t k = 0; k < p->k; k += 4) {
        int8x16_t part[QUARTERS];
        UNROLL for (int q = 0; q < QUARTERS; q++) {
            const uint8x16_t bytes = vld1q_u8(w + k * PL_PANEL + 16 * q);
            part[q] = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)));
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const int8x16_t x = four(a + (size_t)r * p->a_stride + k);
            UNROLL for (int q = 0; q < QUARTERS; q++) sum[r][q] = vdotq_s32(sum[r][q], part[q], x);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) finish(p, row + (size_t)r, panel, sum[r]);
}

INLINE void tile4(const pl_product *p, size_t row, size_t panel, const int rows) {
    const size_t blocks = p->k / PL_BLOCK;
    int32x4_t sum[ROWS][QUARTERS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int q = 0; q < QUARTERS; q++) sum[r][q] = vdupq_n_s32(0);
    for (size_t b = 0; b < blocks; b++) {
        const uint8_t *w = p->w + (panel * blocks + b) * 256;
        const uint8x16_t m = vld1q_u8(p->w_multiplier + (panel * blocks + b) * PL_PANEL);
        const uint16x8_t halves[2] = {vmovl_u8(vget_low_u8(m)), vmovl_u8(vget_high_u8(m))};
        const int8_t *a = p->a + row * p->a_stride + b * PL_BLOCK;
        UNROLL for (int q = 0; q < QUARTERS; q++) {
            int32x4_t part[ROWS];
            UNROLL for (int r = 0; r < rows; r++) part[r] = vdupq_n_s32(0);
            UNROLL for (int g = 0; g < 4; g++) {
                const uint8x16_t pairs = vld1q_u8(w + 64 * g + 16 * q);
                const int8x16_t eight = vdupq_n_s8(8);
                const int8x16_t first =
                    vsubq_s8(vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15))), eight);
                const int8x16_t second =
                    vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4)), eight);
                UNROLL for (int r = 0; r < rows; r++) {
                    const int8_t *bytes = a + (size_t)r * p->a_stride + g * 4;
                    part[r] = vdotq_s32(part[r], first, four(bytes));
                    part[r] = vdotq_s32(part[r], second, four(bytes + 16));
                }
            }
            const uint16x4_t words =
                q % 2 ? vget_high_u16(halves[q / 2]) : vget_low_u16(halves[q / 2]);
            const int32x4_t wide = vreinterpretq_s32_u32(vmovl_u16(words));
            UNROLL for (int r = 0; r < rows; r++) sum[r][q] = vmlaq_s32(sum[r][q], part[r], wide);
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

const pl_version pl_neon = {"neon", 0, round_row, product8, product4, pl_reduce, pl_attend};
#endif
