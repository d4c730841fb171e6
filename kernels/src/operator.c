/* The custom operators `primelens.kernels::Linear` and `Linear4` of ONNX Runtime around the
 * products of linear.h.
 *
 *   0 x           float  [..., K]
 *   1 weight      uint8  Linear: [panels, K/4, 16, 4]; Linear4: [panels, K/32, 4, 64]
 *   2 scale       float  [N]
 *   3 bias        float  [N]
 *   4 multiplier  uint8  Linear4 only: [panels, K/32, 16]
 *   y             float  [..., N]
 */
#include "linear.h"
#include "ort_abi.h"

#include <stdlib.h>

#define API __attribute__((visibility("default")))
#define TRY(call)                      \
    do {                               \
        OrtStatus *status_ = (call);   \
        if (status_) return status_;   \
    } while (0)

enum { MOST_DIMS = 8, BYTES_PER_TASK = 1 << 16, ROW_BLOCK_BYTES = 1 << 18 };

typedef struct {
    const OrtApi *api;
    const pl_version *version;
} Kernel;

typedef struct {
    const pl_version *version;
    pl_product product;
    int bits;
    const float *x;
    int8_t *a;
    float *a_scale;
    int32_t *a_sum;
    size_t panels, rows_per_task, panels_per_task, panel_tasks, rows_per_rounding;
} Call;

typedef struct {
    const void *data;
    size_t count;
    int64_t dims[MOST_DIMS];
} Tensor;

static OrtStatus *fail(const OrtApi *api, const char *message) {
    return ort_create_status(api)(ORT_INVALID_ARGUMENT, message);
}

/* An absent optional input leaves `tensor->data` NULL. */
static OrtStatus *read_tensor(const OrtApi *api, const OrtKernelContext *context, size_t index,
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
    if (!status && tensor->count > MOST_DIMS) status = fail(api, "Linear: too many dimensions");
    if (!status) status = ort_dims(api)(shape, tensor->dims, tensor->count);
    ort_release_shape(api)(shape);
    if (status) return status;
    TRY(ort_tensor_data(api)((OrtValue *)value, &data));
    tensor->data = data;
    return NULL;
}

static int same(const Tensor *tensor, size_t count, const size_t *dims) {
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

static void round_rows(void *user, size_t task) {
    const Call *call = user;
    const pl_product *p = &call->product;
    const size_t blocks = p->k / PL_BLOCK, first = task * call->rows_per_rounding;
    const size_t last = pl_least(p->m, first + call->rows_per_rounding);
    for (size_t row = first; row < last; row++) {
        int8_t *a = call->a + row * p->k;
        int32_t sum;
        call->version->round_row(call->x + row * p->k, p->k, a, call->a_scale + row, &sum);
        if (call->bits == 8)
            call->a_sum[row] = sum;
        else
            pl_block_sums(a, p->k, call->a_sum + row * blocks);
    }
}

static void multiply(void *user, size_t task) {
    const Call *call = user;
    const size_t row = task / call->panel_tasks * call->rows_per_task;
    const size_t panel = task % call->panel_tasks * call->panels_per_task;
    const pl_part part = {row, pl_least(call->product.m, row + call->rows_per_task), panel,
                          pl_least(call->panels, panel + call->panels_per_task)};
    (call->bits == 8 ? call->version->product8 : call->version->product4)(&call->product, &part);
}

static OrtStatus *in_parallel(const OrtApi *api, const OrtKernelContext *context, Call *call,
                              void (*work)(void *, size_t), size_t tasks) {
    if (tasks == 1) {
        work(call, 0);
        return NULL;
    }
    return ort_parallel_for(api)(context, work, tasks, 0, call);
}

/* Few rows: columns are split, so that every weight is read once. Many: blocks of rows whose bytes
 * stay in the second-level cache, each against large groups of columns. */
static size_t plan(Call *call) {
    const pl_product *p = &call->product;
    const size_t group = 4; /* panels that the kernels take together */
    const size_t panel_bytes = p->k * PL_PANEL * (size_t)call->bits / 8;
    size_t rows = ROW_BLOCK_BYTES / p->k / 12 * 12;
    rows = rows < 12 ? 12 : rows;
    call->rows_per_task = p->m <= rows ? p->m : rows;
    const size_t row_tasks = (p->m + call->rows_per_task - 1) / call->rows_per_task;
    size_t work = panel_bytes * (1 + call->rows_per_task / 8);
    size_t panels = (BYTES_PER_TASK + work - 1) / work;
    if (row_tasks > 4) panels = call->panels / 2 + 1;
    call->panels_per_task = (panels + group - 1) / group * group;
    call->panel_tasks = (call->panels + call->panels_per_task - 1) / call->panels_per_task;
    return row_tasks * call->panel_tasks;
}

/* Memory for rounded rows. One block is kept between calls: fresh pages cost more than rounding. */
typedef struct {
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

static OrtStatus *run(const Kernel *kernel, const OrtKernelContext *context, Call *call) {
    pl_product *p = &call->product;
    const size_t sums = call->bits == 8 ? p->m : p->m * (p->k / PL_BLOCK);
    const size_t a_bytes = (p->m * p->k + 63) / 64 * 64;
    Workspace *workspace = take_workspace(a_bytes + sums * sizeof(int32_t) + p->m * sizeof(float));
    if (!workspace) return fail(kernel->api, "Linear: out of memory");
    char *memory = workspace->bytes;
    call->version = kernel->version;
    p->a = call->a = (int8_t *)memory;
    p->a_sum = call->a_sum = (int32_t *)(memory + a_bytes);
    p->a_scale = call->a_scale = (float *)(call->a_sum + sums);
    call->rows_per_rounding = 1 + BYTES_PER_TASK / p->k;
    const size_t roundings = (p->m + call->rows_per_rounding - 1) / call->rows_per_rounding;
    OrtStatus *status = in_parallel(kernel->api, context, call, round_rows, roundings);
    if (!status) status = in_parallel(kernel->api, context, call, multiply, plan(call));
    give_back(workspace);
    return status;
}

static OrtStatus *compute(void *state, OrtKernelContext *context) {
    const Kernel *kernel = state;
    const OrtApi *api = kernel->api;
    Tensor x, w, scale, bias, multiplier;
    TRY(read_tensor(api, context, 0, &x));
    TRY(read_tensor(api, context, 1, &w));
    TRY(read_tensor(api, context, 2, &scale));
    TRY(read_tensor(api, context, 3, &bias));
    TRY(read_tensor(api, context, 4, &multiplier));
    const char *problem = check(&x, &w, &scale, &bias, &multiplier);
    if (problem) return fail(api, problem);

    Call call = {.bits = multiplier.data ? 4 : 8, .x = x.data};
    pl_product *p = &call.product;
    p->k = (size_t)x.dims[x.count - 1];
    p->n = (size_t)scale.dims[0];
    p->m = 1;
    for (size_t i = 0; i + 1 < x.count; i++) p->m *= (size_t)x.dims[i];
    call.panels = (p->n + PL_PANEL - 1) / PL_PANEL;
    p->w = w.data;
    p->w_multiplier = multiplier.data;
    p->w_scale = scale.data;
    p->bias = bias.data;

    OrtValue *output;
    void *y;
    x.dims[x.count - 1] = (int64_t)p->n;
    TRY(ort_output(api)(context, 0, x.dims, x.count, &output));
    TRY(ort_tensor_data(api)(output, &y));
    p->y = y;
    return p->m ? run(kernel, context, &call) : NULL;
}

static OrtStatus *create(const struct OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                         void **state) {
    (void)op, (void)info;
    Kernel *kernel = malloc(sizeof *kernel);
    if (!kernel) return fail(api, "Linear: out of memory");
    *kernel = (Kernel){api, pl_choose()};
    *state = kernel;
    return NULL;
}

static const char *name8(const struct OrtCustomOp *op) { return (void)op, "Linear"; }
static const char *name4(const struct OrtCustomOp *op) { return (void)op, "Linear4"; }
static const char *provider(const struct OrtCustomOp *op) { return (void)op, NULL; }
static size_t four(const struct OrtCustomOp *op) { return (void)op, 4; }
static size_t five(const struct OrtCustomOp *op) { return (void)op, 5; }
static size_t one(const struct OrtCustomOp *op) { return (void)op, 1; }
static int first_version(const struct OrtCustomOp *op) { return (void)op, 1; }
static int no_last_version(const struct OrtCustomOp *op) { return (void)op, INT32_MAX; }
static int no(const struct OrtCustomOp *op) { return (void)op, 0; }
static int input_type(const struct OrtCustomOp *op, size_t index) {
    return (void)op, index == 1 || index == 4 ? ORT_UINT8 : ORT_FLOAT;
}
static int output_type(const struct OrtCustomOp *op, size_t i) { return (void)op, (void)i, ORT_FLOAT; }
static int required(const struct OrtCustomOp *op, size_t i) { return (void)op, (void)i, ORT_REQUIRED; }
static int memory(const struct OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }

#define OPERATOR(name_, inputs)                                                              \
    {                                                                                        \
        .version = ORT_ABI_VERSION, .name = name_, .provider = provider,                     \
        .input_type = input_type, .input_count = inputs, .output_type = output_type,         \
        .output_count = one, .destroy = free, .input_characteristic = required,              \
        .output_characteristic = required, .input_memory = memory,                           \
        .variadic_input_least = no, .variadic_input_same = no, .variadic_output_least = no,  \
        .variadic_output_same = no, .create_v2 = create, .compute_v2 = compute,              \
        .start_version = first_version, .end_version = no_last_version,                      \
    }

static const struct OrtCustomOp linear8 = OPERATOR(name8, four), linear4 = OPERATOR(name4, five);

/* Which version runs here; for people. */
API const char *primelens_kernels_version(void) { return pl_choose()->name; }

/* What ONNX Runtime calls when it is handed the library. The domain lives as long as the process. */
API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static OrtOpDomain *shared;
    const OrtApi *api = base->get_api(ORT_ABI_VERSION);
    if (!api) abort(); /* older than 1.17, which the package's floor rules out; no way to report */
    OrtOpDomain *domain = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
    if (!domain) {
        TRY(ort_create_domain(api)("primelens.kernels", &domain));
        TRY(ort_domain_add(api)(domain, &linear8));
        TRY(ort_domain_add(api)(domain, &linear4));
        __atomic_store_n(&shared, domain, __ATOMIC_RELEASE);
    }
    return ort_add_domain(api)(options, domain);
}
