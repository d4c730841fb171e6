/* Products of float rows with weights of 8 or 4 bits, exact in integers.
 *
 * A row x[K] is rounded to signed bytes a[k] = rint(x[k] * (127 / max|x|)); the product with the
 * integer weights w[k, n] is summed exactly in int32; then
 *
 *     y[n] = float(sum_k a[k] * w[k, n]) * (max|x| / 127) * scale[n] + bias[n]
 *
 * in float32, in that order, without fused multiply-add. Every sum is exact, so the result is the
 * same bits on every instruction set, in every blocking and for every number of rows; what a row
 * yields cannot depend on the rows beside it. An activation may follow, made of the same plain
 * float32 operations (vector.h).
 *
 * 8 bits: w in -127..127, stored as w + 128. Layout [panel][K/4][16][4]: a panel is 16 columns,
 *     and four consecutive k of one column lie side by side.
 * 4 bits: w = m * v with v in -7..7 and a multiplier m in 0..18 for every block of 32 k of a
 *     column. Layout [panel][K/32][4][64] bytes: byte (j, i) of a block holds v + 8 of group j of
 *     four k in its low and of group j + 4 in its high half; multipliers [panel][K/32][16].
 *
 * K is a multiple of 4 (8 bits) or 32 (4 bits), at most PL_MOST_K so that int32 cannot overflow.
 * Columns are padded to whole panels with zeros.
 *
 * Versions: portable C; AVX2 (x86-64); AVX-512 with VNNI (x86-64); NEON with dot product (aarch64).
 */
#ifndef PRIMELENS_LINEAR_H
#define PRIMELENS_LINEAR_H

#include <stddef.h>
#include <stdint.h>

#define PL_PANEL 16
#define PL_BLOCK 32
#define PL_PADDING (-3.402823466e+38f)
#define PL_MOST_K 65536 /* 127 * 255 * 65536 < 2^31 */

typedef enum { PL_NONE, PL_RELU, PL_GELU, PL_GELU_TANH, PL_QUICK_GELU } pl_activation;

/* One call: M rows of K bytes against columns of N. */
typedef struct {
    size_t m, k, n;
    size_t a_stride;        /* from row to row of a, at least k; not where rows are interleaved */
    const int8_t *a;        /* rounded rows: [m][a_stride], or interleaved */
    const float *a_scale;   /* [m] */
    const int32_t *a_offset; /* 8 bits: [m] -128 * sum of a; 4 bits: [m][k/32] -8 * its blocks' */
    const uint8_t *w;       /* packed */
    const uint8_t *w_multiplier; /* 4 bits only */
    const float *w_scale;   /* [n] */
    const float *bias;      /* [n] or NULL */
    pl_activation activation;
    size_t y_stride;        /* from row to row of y, at least n */
    float *y;               /* [m][y_stride] */
} pl_product;

/* Rows first_row..last_row and panels first_panel..last_panel of the result. */
typedef struct {
    size_t first_row, last_row, first_panel, last_panel;
} pl_part;

struct pl_head;

typedef struct {
    const char *name;
    int interleaved; /* of each four k, the rows of a tile lie side by side: [tile][k/4][rows][4] */
    void (*round_row)(const float *x, size_t k, int8_t *a, float *scale, int32_t *sum);
    void (*product8)(const pl_product *product, const pl_part *part);
    void (*product4)(const pl_product *product, const pl_part *part);
    /* Largest of `count` logits (a multiple of 16, padded with PL_PADDING), and in lane i the sum
     * of exp(logit - largest) over every 16th; NaN in a lane that holds a value not finite. */
    void (*reduce)(const float *logits, size_t count, float *most, float *sums);
    /* One head's attention, with pl_head_room() bytes to work in (attention.h). */
    void (*attend)(const struct pl_head *head, void *room);
} pl_version;

/* The fastest version that this processor can run, or the one that PRIMELENS_KERNELS names
 * ("portable", "avx2", "avx512-vnni", "neon"), if it can be run. */
const pl_version *pl_choose(void);

/* The version called `name`, or NULL where it is not compiled in or the processor lacks it. */
const pl_version *pl_find(const char *name);

/* Round a row of `product` into a, a_scale and a_offset (which have room for all rows). */
void pl_round_row(const pl_version *version, const pl_product *product, int bits, size_t row,
                  const float *x, int8_t *a, float *a_scale, int32_t *a_offset);

/* Rows that a product of m rows takes together. Parts of a product begin at multiples of it. */
static inline size_t pl_tile_rows(size_t m) { return m <= 16 ? m : 12; }

/* Bytes from row to row: whole cache lines, and no power of two, on which rows would evict rows. */
static inline size_t pl_row_stride(size_t k) {
    const size_t lines = (k + 63) / 64;
    return 64 * (lines % 8 ? lines : lines + 1);
}

extern const pl_version pl_portable;
#if defined(__x86_64__)
extern const pl_version pl_avx2, pl_avx512;
#endif
#if defined(__aarch64__)
extern const pl_version pl_neon;
#endif

static inline size_t pl_least(size_t a, size_t b) { return a < b ? a : b; }

#endif
