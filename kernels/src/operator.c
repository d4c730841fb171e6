/* The custom operators of ONNX Runtime in the domain `primelens.kernels`.
 *
 * Products, and products followed by an activation (linear.h):
 *
 *   Linear, LinearRelu, LinearGelu, LinearGeluTanh, LinearQuickGelu
 *   Linear4, Linear4Relu, Linear4Gelu, Linear4GeluTanh, Linear4QuickGelu
 *
 *   0 x           float  [..., K]
 *   1 weight      uint8  8 bits: [panels, K/4, 16, 4]; 4 bits: [panels, K/32, 4, 64]
 *   2 scale       float  [N]
 *   3 bias        float  [N]
 *   4 multiplier  uint8  4 bits only: [panels, K/32, 16]
 *   y             float  [..., N]
 *
 * TopLogits, TopLogits4 (top.h): the same inputs, and the attribute k (1..1024, at most N)
 *
 *   ids           int64  [..., k]  best first
 *   logits        float  [..., k]
 *   log_sum_exp   float  [...]     over all N
 *
 * CrossAttention, CrossAttentionRagged (attention.h), and the attribute scale
 *
 *   0 query       float  [I, R, H * D]
 *   1 key         float  [I, H, L, D]
 *   2 value       float  [I, H, L, D]
 *   3 lengths     int32  [I]           Ragged only: how many of the L count
 *   y             float  [I, R, H * D]
 */
#include "call.h"
#include "top.h"

#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))

enum { ROW_BLOCK_BYTES = 1 << 18 };

typedef struct {
    Call call;
    size_t rows_per_task, panels_per_task, panel_tasks;
} Multiplication;

static void multiply(void *user, size_t task) {
    const Multiplication *m = user;
    const pl_product *p = &m->call.product;
    const size_t row = task / m->panel_tasks * m->rows_per_task;
    const size_t panel = task % m->panel_tasks * m->panels_per_task;
    const pl_part part = {row, pl_least(p->m, row + m->rows_per_task), panel,
                          pl_least(m->call.panels, panel + m->panels_per_task)};
    (m->call.bits == 8 ? m->call.version->product8 : m->call.version->product4)(p, &part);
}

/* Few rows: columns are split, so that every weight is read once. Many: blocks of rows that stay in
 * the second-level cache, all about equally large, each against a few panels at a time. */
static size_t plan(Multiplication *m) {
    const pl_product *p = &m->call.product;
    const size_t tile = 12, group = 4; /* rows and panels that versions take together */
    const size_t most_rows = ROW_BLOCK_BYTES / p->a_stride / tile * tile + tile;
    const size_t row_tasks = (p->m + most_rows - 1) / most_rows;
    m->rows_per_task = (p->m + row_tasks - 1) / row_tasks;
    if (row_tasks > 1) m->rows_per_task = (m->rows_per_task + tile - 1) / tile * tile;
    const size_t panel_bytes = p->k * PL_PANEL * (size_t)m->call.bits / 8;
    const size_t panels = m->rows_per_task > 4 * tile ? 2 * group : BYTES_PER_TASK / panel_bytes + 1;
    m->panels_per_task = (panels + group - 1) / group * group;
    m->panel_tasks = (m->call.panels + m->panels_per_task - 1) / m->panels_per_task;
    return (p->m + m->rows_per_task - 1) / m->rows_per_task * m->panel_tasks;
}

static OrtStatus *linear(void *state, OrtKernelContext *context) {
    Multiplication m = {0};
    void *y;
    TRY(open_call(state, context, &m.call));
    TRY(new_output(&m.call, context, 0, m.call.product.n, &y));
    m.call.product.y = y;
    if (!m.call.product.m) return NULL;
    TRY(round_call(&m.call, 0, NULL));
    OrtStatus *status = in_parallel(&m.call, multiply, plan(&m), &m);
    close_call(&m.call);
    return status;
}

typedef struct {
    Call call;
    size_t room, chunks, chunks_per_task, tasks;
    pl_chunk *found;          /* [m][chunks] */
    pl_list *lists;           /* [tasks][m] */
    pl_candidate *candidates; /* [tasks][m][room], then [room] for the result */
} Search;

static void search(void *user, size_t task) {
    const Search *s = user;
    const size_t m = s->call.product.m, first = task * s->chunks_per_task;
    pl_top_part(s->call.version, &s->call.product, s->call.bits, first,
                pl_least(s->chunks, first + s->chunks_per_task), s->found, s->lists + task * m);
}

static void collect(const Search *s, int64_t *ids, float *logits, float *log_sum_exp) {
    const size_t m = s->call.product.m;
    for (size_t row = 0; row < m; row++) {
        pl_list best = {s->candidates + s->tasks * m * s->room, 0, s->room};
        for (size_t task = 0; task < s->tasks; task++) pl_merge(&best, s->lists + task * m + row);
        for (size_t i = 0; i < best.count; i++) {
            ids[row * s->room + i] = best.best[i].column;
            logits[row * s->room + i] = best.best[i].logit;
        }
        log_sum_exp[row] = pl_log_sum_exp(s->found + row * s->chunks, s->chunks);
    }
}

static OrtStatus *top_logits(void *state, OrtKernelContext *context) {
    const Kernel *kernel = state;
    Search s = {.room = kernel->top};
    void *ids, *logits, *log_sum_exp, *memory;
    TRY(open_call(kernel, context, &s.call));
    const pl_product *p = &s.call.product;
    if (s.room > p->n) return fail(kernel->api, "TopLogits: k exceeds the number of columns");
    TRY(new_output(&s.call, context, 0, s.room, &ids));
    TRY(new_output(&s.call, context, 1, s.room, &logits));
    TRY(new_output(&s.call, context, 2, 0, &log_sum_exp));
    if (!p->m) return NULL;
    s.chunks = pl_chunks(p);
    const size_t chunk_bytes = p->k * PL_CHUNK * (size_t)s.call.bits / 8;
    s.chunks_per_task = 1 + (4 * BYTES_PER_TASK) / chunk_bytes;
    s.tasks = (s.chunks + s.chunks_per_task - 1) / s.chunks_per_task;
    const size_t lists = s.tasks * p->m, candidates = (lists + 1) * s.room;
    TRY(round_call(&s.call, p->m * s.chunks * sizeof *s.found + lists * sizeof *s.lists +
                                candidates * sizeof *s.candidates, &memory));
    s.lists = memory;
    s.found = (pl_chunk *)(s.lists + lists);
    s.candidates = (pl_candidate *)(s.found + p->m * s.chunks);
    for (size_t i = 0; i < lists; i++)
        s.lists[i] = (pl_list){s.candidates + i * s.room, 0, s.room};
    OrtStatus *status = in_parallel(&s.call, search, s.tasks, &s);
    if (!status) collect(&s, ids, logits, log_sum_exp);
    close_call(&s.call);
    return status;
}

/* An operator, and what tells it from the others. ONNX Runtime hands the first field back. */
typedef struct {
    struct OrtCustomOp op;
    const char *name;
    size_t inputs;
    pl_activation activation;
} Operator;

static const Operator *own(const struct OrtCustomOp *op) { return (const Operator *)op; }

static OrtStatus *create(const struct OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                         void **state) {
    int64_t top = 0;
    float scale = 0;
    if (!strncmp(own(op)->name, "TopLogits", 9)) {
        TRY(ort_integer_attribute(api)(info, "k", &top));
        if (top < 1 || top > PL_MOST_TOP) return fail(api, "TopLogits: k must be 1 to 1024");
    }
    if (!strncmp(own(op)->name, "CrossAttention", 14))
        TRY(ort_float_attribute(api)(info, "scale", &scale));
    Kernel *kernel = malloc(sizeof *kernel);
    if (!kernel) return fail(api, "an operator of primelens.kernels: out of memory");
    *kernel = (Kernel){api, pl_choose(), own(op)->activation, (size_t)top, scale};
    *state = kernel;
    return NULL;
}

static const char *name(const struct OrtCustomOp *op) { return own(op)->name; }
static const char *provider(const struct OrtCustomOp *op) { return (void)op, NULL; }
static size_t inputs(const struct OrtCustomOp *op) { return own(op)->inputs; }
static size_t one(const struct OrtCustomOp *op) { return (void)op, 1; }
static size_t three(const struct OrtCustomOp *op) { return (void)op, 3; }
static int first_version(const struct OrtCustomOp *op) { return (void)op, 1; }
static int no_last_version(const struct OrtCustomOp *op) { return (void)op, INT32_MAX; }
static int no(const struct OrtCustomOp *op) { return (void)op, 0; }
static int input_type(const struct OrtCustomOp *op, size_t index) {
    return (void)op, index == 1 || index == 4 ? ORT_UINT8 : ORT_FLOAT;
}
static int attention_type(const struct OrtCustomOp *op, size_t index) {
    return (void)op, index == 3 ? ORT_INT32 : ORT_FLOAT;
}
static int floats(const struct OrtCustomOp *op, size_t i) { return (void)op, (void)i, ORT_FLOAT; }
static int ids_first(const struct OrtCustomOp *op, size_t i) {
    return (void)op, i == 0 ? ORT_INT64 : ORT_FLOAT;
}
static int required(const struct OrtCustomOp *op, size_t i) { return (void)op, (void)i, ORT_REQUIRED; }
static int memory(const struct OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }

#define OPERATOR(compute, inputs_, outputs, types, ...)                                      \
    {{                                                                                       \
        .version = ORT_ABI_VERSION, .name = name, .provider = provider,                      \
        .input_type = inputs_, .input_count = inputs, .output_type = types,               \
        .output_count = outputs, .destroy = free, .input_characteristic = required,          \
        .output_characteristic = required, .input_memory = memory,                           \
        .variadic_input_least = no, .variadic_input_same = no, .variadic_output_least = no,  \
        .variadic_output_same = no, .create_v2 = create, .compute_v2 = compute,              \
        .start_version = first_version, .end_version = no_last_version,                      \
    }, __VA_ARGS__}
#define LINEAR(suffix, activation)                                            \
    OPERATOR(linear, input_type, one, floats, "Linear" suffix, 4, activation),            \
    OPERATOR(linear, input_type, one, floats, "Linear4" suffix, 5, activation)

static const Operator operators[] = {
    LINEAR("", PL_NONE),
    LINEAR("Relu", PL_RELU),
    LINEAR("Gelu", PL_GELU),
    LINEAR("GeluTanh", PL_GELU_TANH),
    LINEAR("QuickGelu", PL_QUICK_GELU),
    OPERATOR(top_logits, input_type, three, ids_first, "TopLogits", 4, PL_NONE),
    OPERATOR(top_logits, input_type, three, ids_first, "TopLogits4", 5, PL_NONE),
    OPERATOR(cross_attention, attention_type, one, floats, "CrossAttention", 3, PL_NONE),
    OPERATOR(cross_attention, attention_type, one, floats, "CrossAttentionRagged", 4, PL_NONE),
};

/* Which version runs here; for people. */
API const char *primelens_kernels_version(void) { return pl_choose()->name; }

/* Which operators there are; kernels/__init__.py asks for the one it knows. */
API int primelens_kernels_revision(void) { return 3; }

/* What ONNX Runtime calls when it is handed the library. The domain lives as long as the process. */
API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static OrtOpDomain *shared;
    const OrtApi *api = base->get_api(ORT_ABI_VERSION);
    if (!api) abort(); /* older than 1.17, which the package's floor rules out; no way to report */
    OrtOpDomain *domain = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
    if (!domain) {
        TRY(ort_create_domain(api)("primelens.kernels", &domain));
        for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
            TRY(ort_domain_add(api)(domain, &operators[i].op));
        __atomic_store_n(&shared, domain, __ATOMIC_RELEASE);
    }
    return ort_add_domain(api)(options, domain);
}
