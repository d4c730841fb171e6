/* The largest logits of a row and the log-sum-exp over all of them, without the logits themselves.
 *
 * Columns are taken in chunks of PL_CHUNK, whose logits stay in the first-level cache. Of each
 * chunk its largest logit m and s = sum of exp(logit - m) are kept; together they give
 * log-sum-exp = M + log(sum of s * exp(m - M)), summed in float64 in the order of chunks. So the
 * bits depend neither on the number of threads nor on the rows beside. Equal logits are ordered by
 * their column; NaN counts as the smallest, and makes the row's log-sum-exp NaN, as infinity does.
 */
#ifndef PRIMELENS_TOP_H
#define PRIMELENS_TOP_H

#include "linear.h"

#define PL_CHUNK 512
#define PL_MOST_TOP 1024

typedef struct {
    float logit;
    int32_t column;
} pl_candidate;

typedef struct {
    float most, sum;
} pl_chunk;

/* A row's best `count` so far, best first; `room` is how many there can be. */
typedef struct {
    pl_candidate *best;
    size_t count, room;
} pl_list;

static inline size_t pl_chunks(const pl_product *p) { return (p->n + PL_CHUNK - 1) / PL_CHUNK; }

/* Candidates of rows 0..m-1 from chunks first..last.
 *
 *   product  y is not used
 *   bits     8 or 4
 *   chunks   [m][pl_chunks], of which those of first..last are written
 *   lists    [m], empty
 */
void pl_top_part(const pl_version *version, const pl_product *product, int bits, size_t first,
                 size_t last, pl_chunk *chunks, pl_list *lists);

/* Add the candidates of later columns to a list. */
void pl_merge(pl_list *list, const pl_list *later);

float pl_log_sum_exp(const pl_chunk *chunks, size_t count);

#endif
