/* Attention of a few rows over keys and values that memory holds as float32: a decode step's
 * cross-attention to a picture.
 *
 * For every row q[D] of one head, over the first n of its L keys k[l, D] and values v[l, D]:
 *
 *     s[l] = float(sum_d q[d] * k[l, d] * scale)      summed in float64
 *     p[l] = exp(s[l] - max s)                        float32, by vector.h
 *     y[d] = float(sum_l p[l] * v[l, d] / sum_l p[l]) summed in float64
 *
 * A product of two float32 is exact in float64, so fused and separate multiply-add agree. The sums
 * over d and over p run in 8 lanes (every eighth term, ascending), which are added as
 * ((0 + 4) + (1 + 5)) + ((2 + 6) + (3 + 7)); the sum of p * v runs over l, ascending. So the bits
 * depend neither on instructions nor on threads nor on the rows beside. Another order of sums,
 * such as a graph of standard operators has, changes s or y only where float64 is within its own
 * rounding of the middle between two float32: about once in 10^7 times.
 *
 * A row that meets a value that is not finite becomes NaN; n = 0 gives zeros. The error against
 * float64 throughout is that of rounding s, plus 3e-7 of p (a test holds both).
 *
 * Keys and values of a head are read from memory once: rows are taken in groups, for all but the
 * first of which they lie in the second-level cache.
 */
#ifndef PRIMELENS_ATTENTION_H
#define PRIMELENS_ATTENTION_H

#include "linear.h"

enum { PL_GROUP = 16 }; /* rows whose scores are held together */

/* One head of one image. */
typedef struct pl_head {
    size_t rows, length, width; /* R, n (not L), D */
    size_t stride;              /* from row to row of q and y */
    const float *q;             /* [rows][stride] */
    const float *k, *v;         /* [length][width] */
    const float *next;          /* the keys that will be read after this head, or NULL */
    float scale;
    float *y;                   /* [rows][stride] */
} pl_head;

/* Bytes that `pl_version.attend` needs, aligned to 64, for heads of these sizes. */
static inline size_t pl_head_room(size_t rows, size_t length, size_t width) {
    const size_t group = pl_least(rows, PL_GROUP);
    const size_t padded = (width + 15) / 16 * 16, places = (length + 15) / 16 * 16;
    return group * (2 * padded * sizeof(double) + places * (sizeof(double) + sizeof(float)));
}

#endif
