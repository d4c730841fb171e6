/* attention.h in vectors of PL_LANES. A version includes this after vector.h, and may define before
 *
 *   PL_WIDEN(from)         floats from memory, as doubles
 *   PL_FMA(a, b, c)        a * b + c of doubles, where the product is exact
 *   PL_FOLD(sums, scale, to)  four scores from their lanes
 *   PL_ROWS                rows of a tile, 1 to 3
 *   PL_SPAN                vectors of values that a tile of rows sums at once
 *   PL_FIXED               a width for which a tile's rows and sums stay in registers whole, so
 *                          that keys and values are read in order
 */
#ifndef PRIMELENS_ATTENTION_VECTOR_H
#define PRIMELENS_ATTENTION_VECTOR_H

#include "attention.h"
#include "vector.h"

#define PL_UNROLL_ALL _Pragma("GCC unroll 64")

#ifndef PL_ROWS
#define PL_ROWS 1
#define PL_SPAN 4
#endif
#ifndef PL_FIXED
#define PL_FIXED 0
#endif
#ifndef PL_BLOCK_KEYS
#define PL_BLOCK_KEYS 32 /* positions, whose keys and values stay in the first-level cache */
#endif
#ifndef PL_ANNOUNCED
#define PL_ANNOUNCED 32 /* lines */
#endif
#ifndef PL_AHEAD
#define PL_AHEAD 4096 /* bytes */
#endif

enum {
    PL_WIDE = PL_LANES / 2,    /* doubles in a vector */
    PL_STEP = 8 / PL_WIDE,     /* vectors of 8 lanes */
    PL_SUMS = PL_ROWS * (PL_FIXED / PL_WIDE > PL_SPAN ? PL_FIXED / PL_WIDE : PL_SPAN),
    PL_KEYS = 4,               /* that are multiplied together */
};

typedef double pl_doubles __attribute__((vector_size(PL_WIDE * 8)));

#ifndef PL_FMA
#define PL_FMA(a, b, c) ((a) * (b) + (c))
#endif
#ifndef PL_WIDEN
typedef float pl_half __attribute__((vector_size(PL_WIDE * 4)));
PL_INLINE pl_doubles pl_widen(const float *from) {
    pl_half v;
    memcpy(&v, from, sizeof v);
    return __builtin_convertvector(v, pl_doubles);
}
#define PL_WIDEN pl_widen
#endif

PL_INLINE pl_doubles pl_loads(const double *from) {
    pl_doubles v;
    memcpy(&v, from, sizeof v);
    return v;
}

PL_INLINE void pl_stores(double *to, pl_doubles v) { memcpy(to, &v, sizeof v); }

PL_INLINE double pl_fold(const void *sums) { /* 8 lanes */
    double lane[8];
    memcpy(lane, sums, sizeof lane);
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

#ifndef PL_FOLD
PL_INLINE void pl_fold_keys(double sums[PL_KEYS][8], double scale, float *to) {
    for (int i = 0; i < PL_KEYS; i++) to[i] = (float)(pl_fold(sums[i]) * scale);
}
#define PL_FOLD pl_fold_keys
#endif

/* The first lines of what is read next, while nothing else is read. */
PL_INLINE void pl_announce(const float *next) {
    for (int i = 0; next && i < PL_ANNOUNCED; i++)
        __builtin_prefetch((const char *)next + 64 * i);
}

/* Lines further on in keys or values. Where they are read in order the processor's own prefetch
 * follows, and this would be in its way. */
PL_INLINE void pl_ahead(const pl_head *h, const float *from, size_t first, size_t count) {
    const size_t line = h->width * sizeof *from, whole = h->length * line;
    const size_t end = pl_least(whole, PL_AHEAD + (first + count) * line);
    for (size_t at = PL_AHEAD + first * line; at < end; at += 64)
        __builtin_prefetch((const char *)from + at);
}

/* Scores of rows with keys first..first + count. Keys are read one after the other, because one
 * stream is what memory serves best; the last ones are made up to 4 by repeating the last.
 * `fixed`: the width, where it is known and the rows' vectors stay in registers, or 0. */
PL_INLINE void pl_score(const pl_head *h, size_t first, size_t count, const double *q,
                        size_t padded, const int rows, const int fixed, float *s, size_t places) {
    const size_t width = fixed ? (size_t)fixed : h->width;
    pl_doubles x[PL_ROWS * PL_FIXED / PL_WIDE + 1];
    PL_UNROLL_ALL for (int i = 0; i < rows * fixed / PL_WIDE; i++)
        x[i] = pl_loads(q + (size_t)(i / (fixed / PL_WIDE)) * padded + i % (fixed / PL_WIDE) * PL_WIDE);
    for (size_t l = first; l < first + count; l += PL_KEYS) {
        double lanes[PL_ROWS][PL_KEYS][8];
        PL_UNROLL_ALL for (size_t i = 0; i < PL_KEYS; i++) {
            const float *k = h->k + pl_least(l + i, h->length - 1) * width;
            pl_doubles sum[PL_ROWS * PL_STEP];
            PL_UNROLL_ALL for (int r = 0; r < rows * PL_STEP; r++) sum[r] = (pl_doubles){0};
            if (fixed) {
                PL_UNROLL_ALL for (int d = 0; d < fixed / PL_WIDE; d++) {
                    const pl_doubles part = PL_WIDEN(k + d * PL_WIDE);
                    PL_UNROLL_ALL for (int r = 0; r < rows; r++) {
                        pl_doubles *to = sum + r * PL_STEP + d % PL_STEP;
                        *to = PL_FMA(x[r * (fixed / PL_WIDE) + d], part, *to);
                    }
                }
            } else {
                for (size_t d = 0; d < width; d += 8)
                    PL_UNROLL_ALL for (int j = 0; j < PL_STEP; j++) {
                        const pl_doubles part = PL_WIDEN(k + d + j * PL_WIDE);
                        PL_UNROLL_ALL for (int r = 0; r < rows; r++) {
                            const pl_doubles y = pl_loads(q + (size_t)r * padded + d + j * PL_WIDE);
                            sum[r * PL_STEP + j] = PL_FMA(y, part, sum[r * PL_STEP + j]);
                        }
                    }
            }
            PL_UNROLL_ALL for (int r = 0; r < rows * PL_STEP; r++)
                pl_stores(lanes[r / PL_STEP][i] + r % PL_STEP * PL_WIDE, sum[r]);
        }
        PL_UNROLL_ALL for (int r = 0; r < rows; r++)
            PL_FOLD(lanes[r], h->scale, s + (size_t)r * places + l);
    }
}

/* The same where the width is no multiple of 8: rare enough to be slow. */
static void pl_score_odd(const pl_head *h, size_t first, size_t count, const double *q,
                         size_t padded, size_t rows, float *s, size_t places) {
    for (size_t r = 0; r < rows; r++)
        for (size_t l = first; l < first + count; l++) {
            const float *k = h->k + l * h->width;
            double lane[8] = {0};
            for (size_t d = 0; d < h->width; d++)
                lane[d % 8] = q[r * padded + d] * k[d] + lane[d % 8];
            s[r * places + l] = (float)(pl_fold(lane) * h->scale);
        }
}

/* Scores s[0..length) → p, as doubles, padded with zeros; their sum. */
static double pl_soften(float *s, size_t length, size_t places, double *p) {
    pl_floats found = pl_all(PL_PADDING);
    for (size_t l = length; l < places; l++) s[l] = PL_PADDING;
    for (size_t l = 0; l < places; l += PL_LANES) found = PL_MOST(pl_load(s + l), found);
    float most = PL_PADDING;
    for (int lane = 0; lane < PL_LANES; lane++)
        if (found[lane] > most) most = found[lane];
    for (size_t l = 0; l < places; l += PL_LANES) {
        const pl_floats x = pl_load(s + l) - most;
        pl_store(s + l, pl_exponential(x) + (x - x)); /* x - x: 0 or NaN */
    }
    for (size_t l = length; l < places; l++) s[l] = 0;
    pl_doubles sum[PL_STEP] = {{0}};
    for (size_t l = 0; l < places; l += 8)
        PL_UNROLL_ALL for (int j = 0; j < PL_STEP; j++) {
            const pl_doubles x = PL_WIDEN(s + l + j * PL_WIDE);
            pl_stores(p + l + j * PL_WIDE, x);
            sum[j] = sum[j] + x;
        }
    return pl_fold(sum);
}

/* Adds p * v of `count` positions to `span` vectors of each row. */
PL_INLINE void pl_mix(const float *v, size_t width, size_t count, const double *p, size_t places,
                      const int rows, const int span, double *y, size_t padded) {
    pl_doubles sum[PL_SUMS];
    PL_UNROLL_ALL for (int i = 0; i < rows * span; i++)
        sum[i] = pl_loads(y + (size_t)(i / span) * padded + i % span * PL_WIDE);
    for (size_t l = 0; l < count; l++) {
        PL_UNROLL_ALL for (int j = 0; j < span; j++) {
            const pl_doubles part = PL_WIDEN(v + l * width + j * PL_WIDE);
            PL_UNROLL_ALL for (int r = 0; r < rows; r++) {
                const pl_doubles x = p[(size_t)r * places + l] - (pl_doubles){0};
                sum[r * span + j] = PL_FMA(x, part, sum[r * span + j]);
            }
        }
    }
    PL_UNROLL_ALL for (int i = 0; i < rows * span; i++)
        pl_stores(y + (size_t)(i / span) * padded + i % span * PL_WIDE, sum[i]);
}

/* What is left of a width that no vector divides. */
static void pl_mix_rest(const float *v, size_t width, size_t count, const double *p, size_t places,
                        size_t rows, size_t rest, double *y, size_t padded) {
    for (size_t r = 0; r < rows; r++)
        for (size_t l = 0; l < count; l++)
            for (size_t d = 0; d < rest; d++)
                y[r * padded + d] = p[r * places + l] * v[l * width + d] + y[r * padded + d];
}

typedef void pl_score_tile(const pl_head *h, size_t first, size_t count, const double *q,
                           size_t padded, float *s, size_t places);
typedef void pl_mix_tile(const float *v, size_t width, size_t count, const double *p, size_t places,
                         double *y, size_t padded);

#define PL_SCORE(name, rows, fixed)                                                               \
    static __attribute__((noinline)) void name(const pl_head *h, size_t first, size_t count,      \
                                               const double *q, size_t padded, float *s,          \
                                               size_t places) {                                   \
        pl_score(h, first, count, q, padded, rows, fixed, s, places);                             \
    }
#define PL_MIX(name, rows, span, fixed)                                                           \
    static __attribute__((noinline)) void name(const float *v, size_t width, size_t count,        \
                                               const double *p, size_t places, double *y,         \
                                               size_t padded) {                                   \
        pl_mix(v, fixed ? fixed : width, count, p, places, rows, span, y, padded);                \
    }
#if PL_FIXED
#define PL_FIXED_TILE(rows)                       \
    PL_SCORE(pl_score_fixed_##rows, rows, PL_FIXED) \
    PL_MIX(pl_mix_fixed_##rows, rows, PL_FIXED / PL_WIDE, PL_FIXED)
#else
#define PL_FIXED_TILE(rows)
#endif
#define PL_TILE(rows)                  \
    PL_SCORE(pl_score_##rows, rows, 0) \
    PL_MIX(pl_mix_##rows, rows, PL_SPAN, 0) PL_MIX(pl_mix_one_##rows, rows, 1, 0) PL_FIXED_TILE(rows)
#if PL_ROWS == 3
PL_TILE(1) PL_TILE(2) PL_TILE(3)
#define PL_TILES(name) {name##1, name##2, name##3}
#elif PL_ROWS == 2
PL_TILE(1) PL_TILE(2)
#define PL_TILES(name) {name##1, name##2}
#else
PL_TILE(1)
#define PL_TILES(name) {name##1}
#endif
static pl_score_tile *const pl_score_tiles[] = PL_TILES(pl_score_);
static pl_mix_tile *const pl_mix_tiles[] = PL_TILES(pl_mix_);
static pl_mix_tile *const pl_mix_one_tiles[] = PL_TILES(pl_mix_one_);
#if PL_FIXED
static pl_score_tile *const pl_score_fixed_tiles[] = PL_TILES(pl_score_fixed_);
static pl_mix_tile *const pl_mix_fixed_tiles[] = PL_TILES(pl_mix_fixed_);
#endif

static void pl_score_block(const pl_head *h, size_t rows, size_t first, size_t count,
                           const double *q, size_t padded, float *s, size_t places) {
    if (h->width % 8) {
        pl_score_odd(h, first, count, q, padded, rows, s, places);
        return;
    }
    pl_score_tile *const *tiles = pl_score_tiles;
#if PL_FIXED
    if (h->width == PL_FIXED) tiles = pl_score_fixed_tiles;
#endif
    for (size_t r = 0; r < rows; r += PL_ROWS)
        tiles[pl_least(PL_ROWS, rows - r) - 1](h, first, count, q + r * padded, padded,
                                               s + r * places, places);
}

/* Rows of a group against positions first..first + count. */
static void pl_mix_block(const pl_head *h, size_t rows, size_t first, size_t count, const double *p,
                         size_t places, double *y, size_t padded) {
    for (size_t r = 0; r < rows; r += PL_ROWS) {
        const size_t tile = pl_least(PL_ROWS, rows - r) - 1;
        const double *weights = p + r * places + first;
        const float *v = h->v + first * h->width;
        double *to = y + r * padded;
        size_t d = 0;
#if PL_FIXED
        if (h->width == PL_FIXED) {
            pl_mix_fixed_tiles[tile](v, h->width, count, weights, places, to, padded);
            continue;
        }
#endif
        for (; d + PL_SPAN * PL_WIDE <= h->width; d += PL_SPAN * PL_WIDE)
            pl_mix_tiles[tile](v + d, h->width, count, weights, places, to + d, padded);
        for (; d + PL_WIDE <= h->width; d += PL_WIDE)
            pl_mix_one_tiles[tile](v + d, h->width, count, weights, places, to + d, padded);
        if (d < h->width)
            pl_mix_rest(v + d, h->width, count, weights, places, tile + 1, h->width - d, to + d, padded);
    }
}

/* Up to PL_GROUP rows from `row` on. */
static void pl_attend_group(const pl_head *h, size_t row, size_t rows, double *room) {
    const size_t width = h->width, padded = (width + 15) / 16 * 16;
    const size_t places = (h->length + 15) / 16 * 16;
    double *q = room, *y = q + rows * padded, *p = y + rows * padded, total[PL_GROUP];
    float *s = (float *)(p + rows * places);
    const int fresh = row == 0, last = row + rows == h->rows, in_order = width == PL_FIXED;
    for (size_t r = 0; r < rows; r++)
        for (size_t d = 0; d < padded; d++) {
            q[r * padded + d] = d < width ? h->q[(row + r) * h->stride + d] : 0;
            y[r * padded + d] = 0;
        }
    for (size_t l = 0; l < h->length; l += PL_BLOCK_KEYS) {
        const size_t count = pl_least(PL_BLOCK_KEYS, h->length - l);
        if (fresh && !in_order) pl_ahead(h, h->k, l, count);
        pl_score_block(h, rows, l, count, q, padded, s, places);
    }
    if (fresh) pl_announce(h->v);
    for (size_t r = 0; r < rows; r++)
        total[r] = pl_soften(s + r * places, h->length, places, p + r * places);
    for (size_t l = 0; l < h->length; l += PL_BLOCK_KEYS) {
        const size_t count = pl_least(PL_BLOCK_KEYS, h->length - l);
        if (fresh && !in_order) pl_ahead(h, h->v, l, count);
        pl_mix_block(h, rows, l, count, p, places, y, padded);
    }
    if (last) pl_announce(h->next);
    for (size_t r = 0; r < rows; r++)
        for (size_t d = 0; d < width; d++)
            h->y[(row + r) * h->stride + d] = (float)(h->length ? y[r * padded + d] / total[r] : 0);
}

static void pl_attend(const pl_head *h, void *room) {
    for (size_t row = 0; row < h->rows; row += PL_GROUP)
        pl_attend_group(h, row, pl_least(PL_GROUP, h->rows - row), room);
}

#endif
