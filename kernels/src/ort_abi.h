/* The part of ONNX Runtime's stable C interface that the custom operator needs.
 *
 * ONNX Runtime hands a custom operator a table of functions (`OrtApi`) whose order never changes:
 * versions append, none removes. The table is declared here as slots, and the few functions that
 * are called are named with their slot and signature. So nothing of ONNX Runtime is needed to
 * compile, and any release from 1.17 (which brought slot 274) to the newest can load the result.
 * The tests open a session with every function below, so a wrong slot cannot go unseen.
 */
#ifndef PRIMELENS_ORT_ABI_H
#define PRIMELENS_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_ABI_VERSION 17 /* asked of GetApi, declared by the operator */

typedef struct OrtStatus OrtStatus; /* NULL: success */
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtShapeInfo OrtShapeInfo; /* OrtTensorTypeAndShapeInfo */
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtOpDomain OrtOpDomain; /* OrtCustomOpDomain */

typedef struct {
    void *slot[275];
} OrtApi;

typedef struct {
    const OrtApi *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} OrtApiBase;

/* slot, result, parameters */
#define ORT_CALL(api, slot_number, result, ...) ((result(*)(__VA_ARGS__))(api)->slot[slot_number])

#define ort_create_status(api) ORT_CALL(api, 0, OrtStatus *, int, const char *)
#define ort_create_domain(api) ORT_CALL(api, 26, OrtStatus *, const char *, OrtOpDomain **)
#define ort_domain_add(api) ORT_CALL(api, 27, OrtStatus *, OrtOpDomain *, const struct OrtCustomOp *)
#define ort_add_domain(api) ORT_CALL(api, 28, OrtStatus *, OrtSessionOptions *, OrtOpDomain *)
#define ort_tensor_data(api) ORT_CALL(api, 51, OrtStatus *, OrtValue *, void **)
#define ort_dim_count(api) ORT_CALL(api, 61, OrtStatus *, const OrtShapeInfo *, size_t *)
#define ort_dims(api) ORT_CALL(api, 62, OrtStatus *, const OrtShapeInfo *, int64_t *, size_t)
#define ort_shape(api) ORT_CALL(api, 65, OrtStatus *, const OrtValue *, OrtShapeInfo **)
#define ort_float_attribute(api) \
    ORT_CALL(api, 85, OrtStatus *, const OrtKernelInfo *, const char *, float *)
#define ort_integer_attribute(api) \
    ORT_CALL(api, 86, OrtStatus *, const OrtKernelInfo *, const char *, int64_t *)
#define ort_input_count(api) ORT_CALL(api, 88, OrtStatus *, const OrtKernelContext *, size_t *)
#define ort_input(api) \
    ORT_CALL(api, 90, OrtStatus *, const OrtKernelContext *, size_t, const OrtValue **)
#define ort_output(api) \
    ORT_CALL(api, 91, OrtStatus *, OrtKernelContext *, size_t, const int64_t *, size_t, OrtValue **)
#define ort_release_shape(api) ORT_CALL(api, 99, void, OrtShapeInfo *)
#define ort_parallel_for(api)                                                                     \
    ORT_CALL(api, 274, OrtStatus *, const OrtKernelContext *, void (*)(void *, size_t), size_t, \
             size_t, void *)

enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT32 = 6, ORT_INT64 = 7 }; /* element types */
enum { ORT_REQUIRED = 0 };             /* characteristic of inputs and outputs */
enum { ORT_INVALID_ARGUMENT = 2 };     /* error code */

/* An operator as ONNX Runtime asks about it. Field order is the interface. */
struct OrtCustomOp {
    uint32_t version;
    void *(*create)(const struct OrtCustomOp *, const OrtApi *, const OrtKernelInfo *);
    const char *(*name)(const struct OrtCustomOp *);
    const char *(*provider)(const struct OrtCustomOp *);
    int (*input_type)(const struct OrtCustomOp *, size_t);
    size_t (*input_count)(const struct OrtCustomOp *);
    int (*output_type)(const struct OrtCustomOp *, size_t);
    size_t (*output_count)(const struct OrtCustomOp *);
    void (*compute)(void *, OrtKernelContext *);
    void (*destroy)(void *);
    int (*input_characteristic)(const struct OrtCustomOp *, size_t);
    int (*output_characteristic)(const struct OrtCustomOp *, size_t);
    int (*input_memory)(const struct OrtCustomOp *, size_t);
    int (*variadic_input_least)(const struct OrtCustomOp *);
    int (*variadic_input_same)(const struct OrtCustomOp *);
    int (*variadic_output_least)(const struct OrtCustomOp *);
    int (*variadic_output_same)(const struct OrtCustomOp *);
    OrtStatus *(*create_v2)(const struct OrtCustomOp *, const OrtApi *, const OrtKernelInfo *, void **);
    OrtStatus *(*compute_v2)(void *, OrtKernelContext *);
    void *infer_shape; /* none: the graph's own shapes are dynamic */
    int (*start_version)(const struct OrtCustomOp *);
    int (*end_version)(const struct OrtCustomOp *);
    void *may_inplace, *release_may_inplace, *alias_map, *release_alias_map;
};

#endif
