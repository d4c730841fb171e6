/* What every version computes in float32, lane by lane: activations and exponentials.
 *
 * A version includes this file after it has defined PL_LANES (4, 8 or 16), and PL_MOST and PL_LEAST
 * of two vectors if its processor has them: `a > b ? a : b` and `a < b ? a : b`, so that b comes
 * out where either is NaN. Everything else is a product, a sum, a difference or a quotient of
 * IEEE 754, never fused, so that all versions, NumPy and a graph of standard operators agree in
 * every bit. The coefficients stand in kernels/activations.py too, with their errors.
 */
#ifndef PRIMELENS_VECTOR_H
#define PRIMELENS_VECTOR_H

#include "linear.h"

#include <string.h>

#define PL_INLINE static inline __attribute__((always_inline))
#define PL_UNROLL _Pragma("GCC unroll 8")

enum { PL_PARTS = PL_PANEL / PL_LANES }; /* vectors of a panel's columns */

typedef float pl_floats __attribute__((vector_size(PL_LANES * 4)));
typedef int32_t pl_ints __attribute__((vector_size(PL_LANES * 4)));

PL_INLINE pl_floats pl_all(float value) { return value - (pl_floats){0}; }

PL_INLINE pl_floats pl_load(const float *from) {
    pl_floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

PL_INLINE void pl_store(float *to, pl_floats v) { memcpy(to, &v, sizeof v); }

#ifndef PL_MOST
PL_INLINE pl_floats pl_select(pl_ints mask, pl_floats a, pl_floats b) {
    return (pl_floats)(((pl_ints)a & mask) | ((pl_ints)b & ~mask));
}
#define PL_MOST(a, b) pl_select((a) > (b), a, b)
#define PL_LEAST(a, b) pl_select((a) < (b), a, b)
#endif

/* An odd function that rises from -0.5 to 0.5, as a quotient of polynomials in t * t. */
typedef struct {
    float limit, p[6], q[5];
} pl_sigmoid;

/* distribution function of the normal distribution, minus 0.5 */
static const pl_sigmoid pl_normal = {
    5.6f,
    {0.398942232131958f, 0.03437337651848793f, 0.004707079380750656f, 0.00017382139049004763f,
     6.356182893796358e-06f, 2.2146483757978785e-08f},
    {0.252826988697052f, 0.02893849089741707f, 0.001912812702357769f, 7.509174611186609e-05f,
     1.1802206927313819e-06f}};

/* 1 / (1 + exp(-t)), minus 0.5 */
static const pl_sigmoid pl_logistic = {
    17.6f,
    {0.25f, 0.008366608060896397f, 5.472560951602645e-05f, 8.098547255031008e-08f,
     1.3228198050829754e-11f, 0.0f},
    {0.11679968982934952f, 0.001618898008018732f, 5.152012818143703e-06f, 3.0665596728596256e-09f,
     0.0f}};

PL_INLINE pl_floats pl_rise(pl_floats t, const pl_sigmoid *f) {
    t = PL_LEAST(PL_MOST(t, pl_all(-f->limit)), pl_all(f->limit));
    const pl_floats s = t * t;
    pl_floats p = pl_all(f->p[5]), q = pl_all(f->q[4]);
    PL_UNROLL for (int i = 4; i >= 0; i--) p = p * s + f->p[i];
    PL_UNROLL for (int i = 3; i >= 0; i--) q = q * s + f->q[i];
    q = q * s + 1.0f;
    return PL_LEAST(PL_MOST(t * p / q, pl_all(-0.5f)), pl_all(0.5f));
}

PL_INLINE pl_floats pl_activate(pl_floats y, pl_activation activation) {
    switch (activation) {
        case PL_RELU: return PL_MOST(pl_all(0.0f), y);
        case PL_GELU: return y * (0.5f + pl_rise(y, &pl_normal));
        case PL_GELU_TANH: {
            const pl_floats cube = y * y * y;
            const pl_floats t = (y + 0.044715f * cube) * 1.5957691216057308f;
            return y * (0.5f + pl_rise(t, &pl_logistic));
        }
        case PL_QUICK_GELU: return y * (0.5f + pl_rise(1.702f * y, &pl_logistic));
        default: return y;
    }
}

/* exp of -86..0; smaller ones count as -86, which no sum beside 1 can feel */
PL_INLINE pl_floats pl_exponential(pl_floats d) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    d = PL_LEAST(PL_MOST(d, pl_all(-86.0f)), pl_all(0.0f));
    const pl_floats n = (d * 1.4426950408889634f + shift) - shift;
    const pl_floats r = (d - n * 0.693359375f) + n * 2.12194440e-4f;
    pl_floats p = pl_all(0.0013829109957441688f);
    p = p * r + 0.008374998345971107f;
    p = p * r + 0.041668377816677094f;
    p = p * r + 0.16666418313980103f;
    p = p * r + 0.49999991059303284f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (pl_floats)((pl_ints)p + (__builtin_convertvector(n, pl_ints) << 23));
}

static __attribute__((unused)) void pl_reduce(const float *logits, size_t count, float *most, float *sums) {
    pl_floats found[PL_PARTS], sum[PL_PARTS];
    PL_UNROLL for (int i = 0; i < PL_PARTS; i++) found[i] = pl_all(PL_PADDING), sum[i] = pl_all(0);
    for (size_t c = 0; c < count; c += PL_PANEL)
        PL_UNROLL for (int i = 0; i < PL_PARTS; i++)
            found[i] = PL_MOST(pl_load(logits + c + i * PL_LANES), found[i]);
    float largest = PL_PADDING;
    for (int i = 0; i < PL_PARTS; i++)
        for (int lane = 0; lane < PL_LANES; lane++)
            if (found[i][lane] > largest) largest = found[i][lane];
    for (size_t c = 0; c < count; c += PL_PANEL)
        PL_UNROLL for (int i = 0; i < PL_PARTS; i++) {
            const pl_floats x = pl_load(logits + c + i * PL_LANES);
            sum[i] = sum[i] + pl_exponential(x - largest) + (x - x); /* x - x: 0 or NaN */
        }
    *most = largest;
    PL_UNROLL for (int i = 0; i < PL_PARTS; i++) pl_store(sums + i * PL_LANES, sum[i]);
}

/* Sums of one panel's columns → y: scales and bias. */
PL_INLINE void pl_finish(const pl_product *p, size_t row, size_t panel, const pl_floats *sums) {
    const size_t column = panel * PL_PANEL, count = pl_least(PL_PANEL, p->n - column);
    const float *scale = p->w_scale + column, *bias = p->bias ? p->bias + column : NULL;
    float *y = p->y + row * p->y_stride + column;
    float scales[PL_PANEL] = {0}, biases[PL_PANEL] = {0}, values[PL_PANEL];
    if (count < PL_PANEL) {
        memcpy(scales, scale, count * sizeof *scale);
        if (bias) memcpy(biases, bias, count * sizeof *bias), bias = biases;
        scale = scales, y = values;
    }
    PL_UNROLL for (int i = 0; i < PL_PARTS; i++) {
        pl_floats v = sums[i] * p->a_scale[row] * pl_load(scale + i * PL_LANES);
        if (bias) v = v + pl_load(bias + i * PL_LANES);
        pl_store(y + i * PL_LANES, v);
    }
    if (count < PL_PANEL) memcpy(p->y + row * p->y_stride + column, values, count * sizeof *values);
}

/* Rows and panels of y, just stored, → their activations. */
static __attribute__((noinline, unused)) void pl_activate_tile(const pl_product *p, size_t row, size_t rows,
                                                       size_t panel, size_t panels) {
    const size_t first = panel * PL_PANEL, last = pl_least(p->n, (panel + panels) * PL_PANEL);
    for (size_t r = row; r < row + rows; r++) {
        float *y = p->y + r * p->y_stride;
        size_t column = first;
        for (; column + PL_LANES <= last; column += PL_LANES)
            pl_store(y + column, pl_activate(pl_load(y + column), p->activation));
        if (column < last) {
            float rest[PL_LANES] = {0};
            memcpy(rest, y + column, (last - column) * sizeof *rest);
            pl_store(rest, pl_activate(pl_load(rest), p->activation));
            memcpy(y + column, rest, (last - column) * sizeof *rest);
        }
    }
}

#endif
