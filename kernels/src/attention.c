/* CrossAttention and CrossAttentionRagged: operands checked, heads handed out (attention.h). */
#include "attention.h"
#include "call.h"

#include <stdlib.h>

typedef struct {
    const pl_version *version;
    size_t images, rows, heads, length, width;
    const float *query, *key, *value;
    const int32_t *lengths; /* or NULL */
    float scale;
    float *y;
    int failed; /* a head had no memory to work in */
} Attention;

/* Every size that memory accesses depend on; a graph is untrusted. */
static const char *check(const Tensor *query, const Tensor *key, const Tensor *value,
                         const Tensor *lengths) {
    if (!query->data || !key->data || !value->data) return "CrossAttention: an operand is absent";
    if (query->count != 3 || key->count != 4) return "CrossAttention: shape of query or key";
    if (key->dims[0] && key->dims[2] < 1) return "CrossAttention: there are no keys";
    size_t sizes[4];
    for (size_t i = 0; i < 4; i++) sizes[i] = (size_t)key->dims[i];
    if (!same(value, 4, sizes)) return "CrossAttention: shape of value";
    if (!same(query, 3, (size_t[]){sizes[0], (size_t)query->dims[1], sizes[1] * sizes[3]}))
        return "CrossAttention: shape of query";
    if (lengths->data && !same(lengths, 1, sizes)) return "CrossAttention: shape of lengths";
    return NULL;
}

/* How many keys of an image count. */
static size_t counted(const Attention *a, size_t image) {
    if (!a->lengths) return a->length;
    return a->lengths[image] < 0 ? 0 : pl_least(a->length, (size_t)a->lengths[image]);
}

static void attend(void *user, size_t task) {
    Attention *a = user;
    const size_t image = task / a->heads, head = task % a->heads, stride = a->heads * a->width;
    const size_t place = image * a->rows * stride + head * a->width;
    const size_t first = task * a->length * a->width;
    const int last = task + 1 == a->images * a->heads;
    const pl_head h = {
        .rows = a->rows, .length = counted(a, image), .width = a->width, .stride = stride,
        .q = a->query + place, .k = a->key + first, .v = a->value + first,
        .next = last ? NULL : a->key + first + a->length * a->width,
        .scale = a->scale, .y = a->y + place,
    };
    const size_t bytes = pl_head_room(h.rows, h.length, h.width);
    void *room = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (room)
        a->version->attend(&h, room);
    else
        __atomic_store_n(&a->failed, 1, __ATOMIC_RELAXED);
    free(room);
}

OrtStatus *cross_attention(void *state, OrtKernelContext *context) {
    const Kernel *kernel = state;
    const OrtApi *api = kernel->api;
    Tensor query, key, value, lengths;
    TRY(read_tensor(api, context, 0, &query));
    TRY(read_tensor(api, context, 1, &key));
    TRY(read_tensor(api, context, 2, &value));
    TRY(read_tensor(api, context, 3, &lengths));
    const char *problem = check(&query, &key, &value, &lengths);
    if (problem) return fail(api, problem);
    OrtValue *output;
    void *y;
    TRY(ort_output(api)(context, 0, query.dims, query.count, &output));
    TRY(ort_tensor_data(api)(output, &y));
    Attention a = {
        .version = kernel->version, .images = (size_t)key.dims[0], .rows = (size_t)query.dims[1],
        .heads = (size_t)key.dims[1], .length = (size_t)key.dims[2], .width = (size_t)key.dims[3],
        .query = query.data, .key = key.data, .value = value.data, .lengths = lengths.data,
        .scale = kernel->scale, .y = y,
    };
    const size_t tasks = a.rows && a.width ? a.images * a.heads : 0;
    if (tasks) TRY(spread(api, context, attend, tasks, &a));
    return a.failed ? fail(api, "CrossAttention: out of memory") : NULL;
}
