/* Compares every version that this processor can run with the portable one, bit for bit, on random
 * shapes: rounding, products with every activation, the best logits with their log-sum-exp, and
 * attention, of which every row must come out alone as it does beside others.
 * Built with the address and undefined-behaviour sanitisers: every array is a block of its
 * own, exactly as large as it has to be.
 *
 *     check SEED CASES   exit code 0: all equal; 1: a difference; 2: nothing to run
 */
#include "attention.h"
#include "linear.h"
#include "top.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static uint32_t draw(void) { /* splitmix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 16);
}

static size_t between(size_t least, size_t most) { return least + draw() % (most - least + 1); }

static void *block(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) exit(3);
    return memory;
}

static float number(void) {
    const float sizes[] = {1.0f, 1e-3f, 1e4f, 0.0f, 1e-38f};
    return ((float)(draw() % 20001) - 10000.0f) / 10000.0f * sizes[draw() % 5];
}

typedef struct {
    float *y;
    int8_t *a;
    int32_t *offsets;
    size_t room;
    pl_candidate *best; /* [m][room] */
    float *log_sum_exp; /* [m] */
} Outcome;

/* As the operator does it: parts of the chunks, then merged in order. */
static void search(const pl_version *version, const pl_product *p, int bits, Outcome *out) {
    const size_t chunks = pl_chunks(p), cut = chunks / 2;
    pl_chunk *found = block(p->m * chunks * sizeof *found);
    pl_candidate *memory = block(2 * p->m * out->room * sizeof *memory);
    pl_list *lists = block(2 * p->m * sizeof *lists);
    for (size_t i = 0; i < 2 * p->m; i++)
        lists[i] = (pl_list){memory + i * out->room, 0, out->room};
    pl_top_part(version, p, bits, 0, cut, found, lists);
    pl_top_part(version, p, bits, cut, chunks, found, lists + p->m);
    out->best = block(p->m * out->room * sizeof *out->best);
    out->log_sum_exp = block(p->m * sizeof(float));
    for (size_t row = 0; row < p->m; row++) {
        pl_list list = {out->best + row * out->room, 0, out->room};
        pl_merge(&list, lists + row);
        pl_merge(&list, lists + p->m + row);
        out->log_sum_exp[row] = pl_log_sum_exp(found + row * chunks, chunks);
    }
    free(found), free(memory), free(lists);
}

static Outcome run(const pl_version *version, pl_product p, int bits, const float *x, size_t room) {
    Outcome out = {.y = block(p.m * p.n * 4), .a = calloc(p.m, p.a_stride), .room = room};
    const size_t blocks = p.k / PL_BLOCK;
    float *scale = block(p.m * 4);
    const size_t offsets = bits == 8 ? 1 : blocks;
    out.offsets = block(p.m * offsets * 4);
    int8_t *rounded = calloc(p.m, p.a_stride); /* as they lie: versions order them differently */
    for (size_t row = 0; row < p.m; row++) {
        int32_t sum;
        pl_round_row(version, &p, bits, row, x + row * p.k, rounded, scale, out.offsets);
        version->round_row(x + row * p.k, p.k, out.a + row * p.a_stride, scale + row, &sum);
    }
    p.a = rounded, p.a_scale = scale, p.a_offset = out.offsets, p.y = out.y;
    const size_t panels = (p.n + PL_PANEL - 1) / PL_PANEL;
    const size_t cut = panels / 2, tile = pl_tile_rows(p.m); /* in four parts, as tasks are */
    const size_t middle = p.m / 2 / tile * tile;
    const pl_part parts[] = {{0, middle, 0, cut}, {0, middle, cut, panels},
                             {middle, p.m, 0, cut}, {middle, p.m, cut, panels}};
    for (size_t i = 0; i < 4; i++)
        (bits == 8 ? version->product8 : version->product4)(&p, parts + i);
    p.activation = PL_NONE, p.y = NULL;
    search(version, &p, bits, &out);
    free(scale), free(rounded);
    return out;
}

static void drop(Outcome out) {
    free(out.y), free(out.a), free(out.offsets), free(out.best), free(out.log_sum_exp);
}

static int differ(const float *a, const float *b, size_t count) { /* any NaN equals any other */
    for (size_t i = 0; i < count; i++)
        if (memcmp(a + i, b + i, sizeof *a) && !(isnan(a[i]) && isnan(b[i]))) return 1;
    return 0;
}

static int differ_in_best(const Outcome *a, const Outcome *b, size_t m) {
    for (size_t i = 0; i < m * a->room; i++)
        if (a->best[i].column != b->best[i].column ||
            differ(&a->best[i].logit, &b->best[i].logit, 1))
            return 1;
    return differ(a->log_sum_exp, b->log_sum_exp, m);
}

static int same_case(const pl_version *const *versions, size_t count) {
    const int bits = draw() % 2 ? 8 : 4;
    const size_t step = bits == 8 ? 4 : PL_BLOCK;
    pl_product p = {.m = between(1, 40), .k = step * between(1, 40), .n = between(1, 100)};
    if (draw() % 8 == 0) p.n = between(400, 1100), p.k = step * between(1, 3); /* several chunks */
    p.a_stride = p.k + (draw() % 2 ? 64 : 0), p.y_stride = p.n;
    p.activation = (pl_activation)(draw() % 5);
    const size_t room = between(1, pl_least(p.n, 12));
    const size_t panels = (p.n + PL_PANEL - 1) / PL_PANEL, padded = panels * PL_PANEL;
    const size_t blocks = p.k / PL_BLOCK, bytes = padded * p.k * (size_t)bits / 8;
    float *x = block(p.m * p.k * 4), *scale = block(p.n * 4), *bias = block(p.n * 4);
    uint8_t *w = block(bytes), *multiplier = block(bits == 4 ? padded * blocks : 1);
    const int extreme = draw() % 4 == 0; /* every product as large as it can be */
    for (size_t i = 0; i < p.m * p.k; i++) x[i] = extreme ? (draw() % 2 ? 1.0f : -1.0f) : number();
    if (draw() % 8 == 0) x[draw() % (p.m * p.k)] = draw() % 2 ? NAN : INFINITY;
    for (size_t i = 0; i < bytes; i++) {
        const unsigned low = 1 + draw() % 15, high = 1 + draw() % 15;
        w[i] = (uint8_t)(bits == 4 ? low | high << 4 : 1 + draw() % 255);
        if (extreme) w[i] = bits == 4 ? (draw() % 2 ? 0x11 : 0xff) : (draw() % 2 ? 1 : 255);
    }
    for (size_t i = 0; bits == 4 && i < padded * blocks; i++) multiplier[i] = (uint8_t)(draw() % 19);
    for (size_t i = 0; i < p.n; i++) scale[i] = number(), bias[i] = number();
    p.w = w, p.w_multiplier = multiplier, p.w_scale = scale, p.bias = draw() % 2 ? bias : NULL;

    const Outcome wanted = run(&pl_portable, p, bits, x, room);
    int failed = 0;
    for (size_t v = 0; v < count && !failed; v++) {
        const Outcome found = run(versions[v], p, bits, x, room);
        const size_t numbers = p.m * (bits == 8 ? 1 : blocks) * 4;
        failed = memcmp(found.a, wanted.a, p.m * p.a_stride) ||
                 memcmp(found.offsets, wanted.offsets, numbers) ||
                 differ(found.y, wanted.y, p.m * p.n) || differ_in_best(&found, &wanted, p.m);
        drop(found);
        if (failed)
            printf("%s differs: %d bits, %zu x %zu x %zu, activation %d\n", versions[v]->name, bits,
                   p.m, p.k, p.n, (int)p.activation);
    }
    drop(wanted);
    free(x), free(scale), free(bias), free(w), free(multiplier);
    return !failed;
}

/* A head's result; `stride` of q and y, whose last row ends with the head's own columns. */
static float *attended(const pl_version *version, pl_head h) {
    h.y = calloc((h.rows - 1) * h.stride + h.width, sizeof *h.y);
    void *room = aligned_alloc(64, (pl_head_room(h.rows, h.length, h.width) + 63) / 64 * 64);
    if (!h.y || !room) exit(3);
    version->attend(&h, room);
    free(room);
    return h.y;
}

static int same_attention(const pl_version *const *versions, size_t count) {
    const size_t widths[] = {32, 64, 64, 80, 8, 13};
    pl_head h = {.rows = between(1, 40), .length = between(1, 90), .scale = 0.125f};
    h.width = draw() % 4 ? widths[draw() % 6] : between(1, 150);
    h.stride = h.width + (draw() % 2 ? between(0, 70) : 0);
    const size_t used = (h.rows - 1) * h.stride + h.width, keys = h.length * h.width;
    float *q = block(used * 4), *k = block(keys * 4), *v = block(keys * 4);
    for (size_t i = 0; i < used; i++) q[i] = number();
    for (size_t i = 0; i < keys; i++) k[i] = number(), v[i] = number();
    if (draw() % 8 == 0) q[draw() % used] = draw() % 2 ? NAN : INFINITY;
    if (draw() % 8 == 0) (draw() % 2 ? k : v)[draw() % keys] = draw() % 2 ? NAN : -INFINITY;
    if (draw() % 16 == 0) h.length = 0;
    h.q = q, h.k = k, h.v = v, h.next = draw() % 2 ? k : NULL;
    float *wanted = attended(&pl_portable, h);
    int failed = 0;
    for (size_t i = 0; i < count && !failed; i++) {
        float *found = attended(versions[i], h);
        const size_t row = draw() % h.rows;
        pl_head single = h;
        single.rows = 1, single.q += row * h.stride;
        float *alone = attended(versions[i], single);
        failed = differ(found, wanted, used) || differ(alone, wanted + row * h.stride, h.width);
        free(found), free(alone);
        if (failed)
            printf("%s differs: attention, %zu rows, %zu keys of %zu\n", versions[i]->name, h.rows,
                   h.length, h.width);
    }
    free(wanted), free(q), free(k), free(v);
    return !failed;
}

int main(int count, char **words) {
    const char *names[] = {"avx2", "avx512-vnni", "neon"};
    const pl_version *versions[3];
    size_t found = 0;
    if (count < 3) return 2;
    for (size_t i = 0; i < 3; i++) {
        const pl_version *version = pl_find(names[i]);
        if (version) versions[found++] = version;
    }
    state = strtoull(words[1], NULL, 10);
    const long cases = strtol(words[2], NULL, 10);
    if (!found) return puts("only the portable version runs here"), 2;
    for (long i = 0; i < cases; i++)
        if (!same_case(versions, found) || !same_attention(versions, found)) return 1;
    printf("%ld cases:", cases);
    for (size_t i = 0; i < found; i++) printf(" %s", versions[i]->name);
    puts(" equal portable");
    return 0;
}
