/* See call.h. */
#include "call.h"

#include <stdlib.h>

OrtStatus *fail(const OrtApi *api, const char *message) {
    return ort_create_status(api)(ORT_INVALID_ARGUMENT, message);
}

OrtStatus *read_tensor(const OrtApi *api, const OrtKernelContext *context, size_t index,
                       Tensor *tensor) {
    const OrtValue *value = NULL;
    size_t given;
    tensor->data = NULL;
    TRY(ort_input_count(api)(context, &given));
    if (index >= given) return NULL;
    TRY(ort_input(api)(context, index, &value));
    if (!value) return NULL;
    OrtShapeInfo *shape;
    void *data;
    TRY(ort_shape(api)(value, &shape));
    OrtStatus *status = ort_dim_count(api)(shape, &tensor->count);
    if (!status && tensor->count > MOST_DIMS) status = fail(api, "an input has too many dimensions");
    if (!status) status = ort_dims(api)(shape, tensor->dims, tensor->count);
    ort_release_shape(api)(shape);
    if (status) return status;
    TRY(ort_tensor_data(api)((OrtValue *)value, &data));
    tensor->data = data;
    return NULL;
}

int same(const Tensor *tensor, size_t count, const size_t *dims) {
    if (tensor->count != count) return 0;
    for (size_t i = 0; i < count; i++)
        if ((size_t)tensor->dims[i] != dims[i]) return 0;
    return 1;
}

/* Every size that memory accesses depend on; a graph is untrusted. */
static const char *check(const Tensor *x, const Tensor *w, const Tensor *scale, const Tensor *bias,
                         const Tensor *multiplier) {
    if (!x->data || !w->data || !scale->data) return "Linear: x, weight and scale are required";
    if (x->count < 1 || scale->count != 1 || scale->dims[0] < 1) return "Linear: shape of x or scale";
    const size_t k = (size_t)x->dims[x->count - 1], n = (size_t)scale->dims[0];
    const size_t panels = (n + PL_PANEL - 1) / PL_PANEL, blocks = k / PL_BLOCK;
    if (k < 4 || k > PL_MOST_K || k % 4) return "Linear: K must be a multiple of 4, at most 65536";
    if (multiplier->data) {
        if (k % PL_BLOCK) return "Linear: K must be a multiple of 32 for 4-bit weights";
        if (!same(w, 4, (size_t[]){panels, blocks, 4, 64}) ||
            !same(multiplier, 3, (size_t[]){panels, blocks, PL_PANEL}))
            return "Linear: shape of 4-bit weight or multiplier";
    } else if (!same(w, 4, (size_t[]){panels, k / 4, PL_PANEL, 4})) {
        return "Linear: shape of 8-bit weight";
    }
    if (bias->data && !same(bias, 1, (size_t[]){n})) return "Linear: shape of bias";
    return NULL;
}

OrtStatus *open_call(const Kernel *kernel, OrtKernelContext *context, Call *call) {
    const OrtApi *api = kernel->api;
    Tensor x, w, scale, bias, multiplier;
    TRY(read_tensor(api, context, 0, &x));
    TRY(read_tensor(api, context, 1, &w));
    TRY(read_tensor(api, context, 2, &scale));
    TRY(read_tensor(api, context, 3, &bias));
    TRY(read_tensor(api, context, 4, &multiplier));
    const char *problem = check(&x, &w, &scale, &bias, &multiplier);
    if (problem) return fail(api, problem);
    *call = (Call){.api = api, .context = context, .version = kernel->version};
    call->bits = multiplier.data ? 4 : 8;
    call->x = x.data;
    call->dim_count = x.count;
    pl_product *p = &call->product;
    p->m = 1;
    for (size_t i = 0; i < x.count; i++) call->dims[i] = x.dims[i];
    for (size_t i = 0; i + 1 < x.count; i++) p->m *= (size_t)x.dims[i];
    p->k = (size_t)x.dims[x.count - 1];
    p->n = (size_t)scale.dims[0];
    p->w = w.data;
    p->w_multiplier = multiplier.data;
    p->w_scale = scale.data;
    p->bias = bias.data;
    p->y_stride = p->n;
    p->activation = kernel->activation;
    call->panels = (p->n + PL_PANEL - 1) / PL_PANEL;
    return NULL;
}

OrtStatus *new_output(const Call *call, OrtKernelContext *context, size_t index, size_t last_dim,
                      void **data) {
    OrtValue *output;
    int64_t dims[MOST_DIMS];
    const size_t count = call->dim_count - (last_dim ? 0 : 1);
    for (size_t i = 0; i < count; i++) dims[i] = call->dims[i];
    if (last_dim) dims[count - 1] = (int64_t)last_dim;
    TRY(ort_output(call->api)(context, index, dims, count, &output));
    return ort_tensor_data(call->api)(output, data);
}

OrtStatus *spread(const OrtApi *api, const OrtKernelContext *context,
                  void (*work)(void *, size_t), size_t tasks, void *user) {
    if (tasks == 1) {
        work(user, 0);
        return NULL;
    }
    return ort_parallel_for(api)(context, work, tasks, 0, user);
}

OrtStatus *in_parallel(const Call *call, void (*work)(void *, size_t), size_t tasks, void *user) {
    return spread(call->api, call->context, work, tasks, user);
}

static void round_rows(void *user, size_t task) {
    const Call *call = user;
    const pl_product *p = &call->product;
    const size_t first = task * call->rows_per_rounding;
    const size_t last = pl_least(p->m, first + call->rows_per_rounding);
    for (size_t row = first; row < last; row++)
        pl_round_row(call->version, p, call->bits, row, call->x + row * p->k, call->a,
                     call->a_scale, call->a_offset);
}

/* Memory for rounded rows. One block is kept between calls: fresh pages cost more than rounding. */
typedef struct Workspace {
    size_t size;
    char bytes[] __attribute__((aligned(64)));
} Workspace;

static Workspace *spare;

static Workspace *take_workspace(size_t size) {
    Workspace *found = __atomic_exchange_n(&spare, NULL, __ATOMIC_ACQ_REL);
    if (found && found->size >= size) return found;
    free(found);
    found = aligned_alloc(64, (sizeof *found + size + 63) / 64 * 64);
    if (found) found->size = size;
    return found;
}

static void give_back(Workspace *workspace) {
    free(__atomic_exchange_n(&spare, workspace, __ATOMIC_ACQ_REL));
}

OrtStatus *round_call(Call *call, size_t extra_bytes, void **extra) {
    pl_product *p = &call->product;
    const size_t offsets = call->bits == 8 ? p->m : p->m * (p->k / PL_BLOCK);
    p->a_stride = pl_row_stride(p->k);
    const size_t a_bytes = p->m * p->a_stride;
    const size_t numbers = (offsets * sizeof(int32_t) + p->m * sizeof(float) + 63) / 64 * 64;
    call->workspace = take_workspace(a_bytes + numbers + extra_bytes);
    if (!call->workspace) return fail(call->api, "Linear: out of memory");
    char *memory = call->workspace->bytes;
    p->a = call->a = (int8_t *)memory;
    p->a_offset = call->a_offset = (int32_t *)(memory + a_bytes);
    p->a_scale = call->a_scale = (float *)(call->a_offset + offsets);
    if (extra) *extra = memory + a_bytes + numbers;
    call->rows_per_rounding = 1 + BYTES_PER_TASK / p->k;
    const size_t roundings = (p->m + call->rows_per_rounding - 1) / call->rows_per_rounding;
    OrtStatus *status = in_parallel(call, round_rows, roundings, call);
    if (status) close_call(call);
    return status;
}

void close_call(Call *call) { give_back(call->workspace); }
