/* One call of an operator: its operands read and checked, its rows rounded, its work handed out. */
#ifndef PRIMELENS_CALL_H
#define PRIMELENS_CALL_H

#include "linear.h"
#include "ort_abi.h"

#define TRY(call)                      \
    do {                               \
        OrtStatus *status_ = (call);   \
        if (status_) return status_;   \
    } while (0)

enum { MOST_DIMS = 8, BYTES_PER_TASK = 1 << 16 };

typedef struct {
    const OrtApi *api;
    const pl_version *version;
    pl_activation activation;
    size_t top;  /* TopLogits: how many */
    float scale; /* CrossAttention: of a score */
} Kernel;

typedef struct {
    const void *data;
    size_t count;
    int64_t dims[MOST_DIMS];
} Tensor;

typedef struct {
    const OrtApi *api;
    const OrtKernelContext *context;
    const pl_version *version;
    pl_product product;
    int bits;
    const float *x;
    int64_t dims[MOST_DIMS]; /* of x */
    size_t dim_count;
    size_t panels;
    struct Workspace *workspace;
    int8_t *a;
    float *a_scale;
    int32_t *a_offset;
    size_t rows_per_rounding;
} Call;

OrtStatus *fail(const OrtApi *api, const char *message);

/* An absent optional input leaves `tensor->data` NULL. */
OrtStatus *read_tensor(const OrtApi *api, const OrtKernelContext *context, size_t index,
                       Tensor *tensor);

/* Whether a tensor has these sizes. */
int same(const Tensor *tensor, size_t count, const size_t *dims);

/* Calls `work` for 0..tasks on the engine's own threads. */
OrtStatus *spread(const OrtApi *api, const OrtKernelContext *context,
                  void (*work)(void *, size_t), size_t tasks, void *user);

/* Reads inputs 0 x, 1 weight, 2 scale, 3 bias and, for 4 bits, 4 multiplier. */
OrtStatus *open_call(const Kernel *kernel, OrtKernelContext *context, Call *call);

/* Rounds the rows; `extra` gets so many further bytes that live until `close_call`. */
OrtStatus *round_call(Call *call, size_t extra_bytes, void **extra);
void close_call(Call *call);

OrtStatus *new_output(const Call *call, OrtKernelContext *context, size_t index, size_t last_dim,
                      void **data);
OrtStatus *in_parallel(const Call *call, void (*work)(void *, size_t), size_t tasks, void *user);

/* The operators CrossAttention and CrossAttentionRagged (attention.c). */
OrtStatus *cross_attention(void *state, OrtKernelContext *context);

#endif
