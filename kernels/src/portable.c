/* Portable C: what the other versions are compared with, and the choice between them. */
#define PL_LANES 4
#include "vector.h"

#include "attention_vector.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

static void round_row(const float *x, size_t k, int8_t *a, float *scale, int32_t *sum) {
    uint32_t largest = 0; /* as bits: of absolute values these order like the values, NaN above */
    for (size_t i = 0; i < k; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        if (bits > largest) largest = bits;
    }
    float most;
    memcpy(&most, &largest, sizeof most);
    if (largest >= 0x7f800000u) { /* a value that is not finite spoils its whole row, visibly */
        memset(a, 0, k);
        *scale = NAN;
        *sum = 0;
        return;
    }
    if (most < 1e-30f) most = 1e-30f;
    const float inverse = 127.0f / most;
    int32_t total = 0;
    for (size_t i = 0; i < k; i++) {
        a[i] = (int8_t)lrintf(x[i] * inverse);
        total += a[i];
    }
    *scale = most / 127.0f;
    *sum = total;
}

static void interleave(const int8_t *from, const pl_product *p, size_t row, int8_t *a) {
    const size_t tile = pl_tile_rows(p->m), first = row / tile * tile;
    const size_t rows = pl_least(tile, p->m - first);
    int8_t *to = a + first * p->k + 4 * (row - first);
    for (size_t k = 0; k < p->k; k += 4, to += 4 * rows) memcpy(to, from + k, 4);
}

void pl_round_row(const pl_version *version, const pl_product *p, int bits, size_t row,
                  const float *x, int8_t *a, float *a_scale, int32_t *a_offset) {
    int8_t room[PL_MOST_K];
    int8_t *rounded = version->interleaved ? room : a + row * p->a_stride;
    int32_t sum;
    version->round_row(x, p->k, rounded, a_scale + row, &sum);
    if (bits == 8) a_offset[row] = -128 * sum;
    for (size_t b = 0; bits == 4 && b < p->k / PL_BLOCK; b++) {
        int32_t total = 0;
        for (size_t i = 0; i < PL_BLOCK; i++) total += rounded[b * PL_BLOCK + i];
        a_offset[row * (p->k / PL_BLOCK) + b] = -8 * total;
    }
    if (version->interleaved) interleave(room, p, row, a);
}

static void finish(const pl_product *p, size_t row, size_t panel, const int32_t *sum) {
    pl_floats sums[PL_PARTS];
    for (int i = 0; i < PL_PANEL; i++) sums[i / PL_LANES][i % PL_LANES] = (float)sum[i];
    pl_finish(p, row, panel, sums);
    if (p->activation) pl_activate_tile(p, row, 1, panel, 1);
}

static void product8(const pl_product *p, const pl_part *part) {
    for (size_t panel = part->first_panel; panel < part->last_panel; panel++) {
        const uint8_t *w = p->w + panel * p->k * PL_PANEL;
        for (size_t row = part->first_row; row < part->last_row; row++) {
            const int8_t *a = p->a + row * p->a_stride;
            int32_t sum[PL_PANEL] = {0};
            for (size_t g = 0; g < p->k / 4; g++)
                for (size_t i = 0; i < PL_PANEL; i++)
                    for (size_t j = 0; j < 4; j++)
                        sum[i] += a[4 * g + j] * ((int32_t)w[(g * PL_PANEL + i) * 4 + j] - 128);
            finish(p, row, panel, sum);
        }
    }
}

static void product4(const pl_product *p, const pl_part *part) {
    const size_t blocks = p->k / PL_BLOCK;
    for (size_t panel = part->first_panel; panel < part->last_panel; panel++) {
        for (size_t row = part->first_row; row < part->last_row; row++) {
            int32_t sum[PL_PANEL] = {0};
            for (size_t b = 0; b < blocks; b++) {
                const uint8_t *w = p->w + (panel * blocks + b) * 256;
                const uint8_t *multiplier = p->w_multiplier + (panel * blocks + b) * PL_PANEL;
                const int8_t *a = p->a + row * p->a_stride + b * PL_BLOCK;
                for (size_t i = 0; i < PL_PANEL; i++) {
                    int32_t dot = 0;
                    for (size_t g = 0; g < 4; g++)
                        for (size_t j = 0; j < 4; j++) {
                            const uint8_t pair = w[(g * PL_PANEL + i) * 4 + j];
                            dot += a[4 * g + j] * ((int32_t)(pair & 15) - 8);
                            dot += a[4 * (g + 4) + j] * ((int32_t)(pair >> 4) - 8);
                        }
                    sum[i] += dot * multiplier[i];
                }
            }
            finish(p, row, panel, sum);
        }
    }
}

const pl_version pl_portable = {"portable", 0, round_row, product8, product4, pl_reduce, pl_attend};

const pl_version *pl_find(const char *name) {
    if (!strcmp(name, "portable")) return &pl_portable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &pl_avx2;
    if (!strcmp(name, "avx512-vnni") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return &pl_avx512;
#endif
#if defined(__aarch64__)
    int dot_product = 1;
#if defined(__linux__)
    dot_product = (getauxval(AT_HWCAP) & (1ul << 20)) != 0; /* HWCAP_ASIMDDP */
#endif
    if (!strcmp(name, "neon") && dot_product) return &pl_neon;
#endif
    return NULL;
}

const pl_version *pl_choose(void) {
    static const char *const names[] = {"avx512-vnni", "avx2", "neon"};
    const char *wanted = getenv("PRIMELENS_KERNELS");
    const pl_version *found = wanted ? pl_find(wanted) : NULL;
    for (size_t i = 0; !found && i < sizeof names / sizeof *names; i++) found = pl_find(names[i]);
    return found ? found : &pl_portable;
}
