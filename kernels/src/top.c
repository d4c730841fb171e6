/* See top.h. */
#define PL_LANES 4
#include "vector.h"
#include "top.h"

#include <math.h>

enum { MOST_TILE = 16 };

static float key(float logit) { return isnan(logit) ? -INFINITY : logit; }

/* Where columns ascend, a later one must be greater to pass an earlier one. */
static void add(pl_list *list, float logit, size_t column) {
    size_t at = list->count;
    while (at > 0 && key(logit) > key(list->best[at - 1].logit)) at--;
    if (at == list->room) return;
    const size_t kept = pl_least(list->count, list->room - 1);
    memmove(list->best + at + 1, list->best + at, (kept - at) * sizeof *list->best);
    list->best[at] = (pl_candidate){logit, (int32_t)column};
    list->count = kept + 1;
}

void pl_merge(pl_list *list, const pl_list *later) {
    for (size_t i = 0; i < later->count; i++)
        add(list, later->best[i].logit, (size_t)later->best[i].column);
}

static void scan(pl_list *list, const float *logits, size_t count, size_t column, float most) {
    if (list->count == list->room && !(most > key(list->best[list->room - 1].logit))) return;
    for (size_t i = 0; i < count; i++)
        if (list->count < list->room || !(logits[i] <= list->best[list->room - 1].logit))
            add(list, logits[i], column + i);
}

void pl_top_part(const pl_version *version, const pl_product *product, int bits, size_t first,
                 size_t last, pl_chunk *chunks, pl_list *lists) {
    _Alignas(64) float logits[MOST_TILE * PL_CHUNK];
    float padded[PL_CHUNK];
    const size_t count = pl_chunks(product), blocks = product->k / PL_BLOCK;
    const size_t tile = pl_tile_rows(product->m);
    for (size_t chunk = first; chunk < last; chunk++) {
        const size_t column = chunk * PL_CHUNK, panel = column / PL_PANEL;
        const size_t width = pl_least(PL_CHUNK, product->n - column);
        const size_t whole = (width + PL_PANEL - 1) / PL_PANEL * PL_PANEL;
        for (size_t row = 0; row < product->m; row += tile) {
            pl_product p = *product;
            p.m = pl_least(tile, product->m - row), p.n = width;
            p.a += row * (version->interleaved ? p.k : p.a_stride), p.a_scale += row, p.a_offset += row * (bits == 8 ? 1 : blocks);
            p.w += panel * PL_PANEL * p.k * (size_t)bits / 8;
            if (bits == 4) p.w_multiplier += panel * blocks * PL_PANEL;
            p.w_scale += column, p.y = logits, p.y_stride = width;
            if (p.bias) p.bias += column;
            const pl_part part = {0, p.m, 0, whole / PL_PANEL};
            (bits == 8 ? version->product8 : version->product4)(&p, &part);
            for (size_t r = 0; r < p.m; r++) {
                const float *y = logits + r * width;
                float sums[PL_PANEL];
                pl_chunk *found = chunks + (row + r) * count + chunk;
                if (whole != width) {
                    memcpy(padded, y, width * sizeof *y);
                    for (size_t i = width; i < whole; i++) padded[i] = PL_PADDING;
                    y = padded;
                }
                version->reduce(y, whole, &found->most, sums);
                double sum = 0;
                for (size_t i = 0; i < PL_PANEL; i++) sum += sums[i];
                found->sum = (float)sum;
                scan(lists + row + r, y, width, column, found->most);
            }
        }
    }
}

float pl_log_sum_exp(const pl_chunk *chunks, size_t count) {
    float most = PL_PADDING;
    for (size_t c = 0; c < count; c++)
        if (chunks[c].most > most) most = chunks[c].most;
    double sum = 0;
    for (size_t c = 0; c < count; c++)
        sum += (double)chunks[c].sum * (double)pl_exponential(pl_all(chunks[c].most - most))[0];
    return (float)((double)most + log(sum));
}
