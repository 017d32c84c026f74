// The C interface between Rust and TensorRT. What crosses it: opaque handles, integers, caller's memory, one message.
//
// Every function returns 0 (or a tensor's number) on success and a negative number on failure, with one line in
// `message`. No exception leaves, nothing is printed, and no TensorRT symbol is referenced when this is linked: the
// library is opened by name when it is needed.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

struct TrtMessage {
    char text[1024];
};

// severity as TensorRT's: 0 internal error … 4 verbose
typedef void (*TrtLog)(void* user, int32_t severity, char const* text);
// step of steps in phase; return 0 to stop building
typedef int32_t (*TrtProgress)(void* user, char const* phase, int32_t step, int32_t steps);

struct TrtLibrary; // the opened library
struct TrtBuild;   // a network being defined
struct TrtPlan;    // a built engine, in memory
struct TrtEngine;  // a plan ready to run

// What this file was compiled with: 10 * 10000 + minor * 100 + patch, and 1 for TensorRT-RTX.
int32_t trt_header_version();
int32_t trt_header_major();
int32_t trt_header_is_rtx();

// Opens `path`; refuses a library whose major version is not the headers'. `version` is the library's.
int32_t trt_open(char const* path, TrtLog log, void* user, TrtLibrary** library, int32_t* version, TrtMessage* message);
void trt_close(TrtLibrary* library);

// A strongly typed network. `library` must outlive it, as must every constant's memory until it is built.
int32_t trt_build_new(TrtLibrary* library, TrtBuild** build, TrtMessage* message);
void trt_build_delete(TrtBuild* build);

// Each gives the number of its output tensor.
int32_t trt_input(TrtBuild* b, char const* name, int32_t dtype, int32_t rank, int64_t const* shape, TrtMessage* message);
int32_t trt_constant(TrtBuild* b, int32_t dtype, int32_t rank, int64_t const* shape, void const* data, int64_t count,
    TrtMessage* message);
int32_t trt_cast(TrtBuild* b, int32_t x, int32_t dtype, TrtMessage* message);
int32_t trt_matmul(TrtBuild* b, int32_t x, int32_t y, int32_t transpose_y, TrtMessage* message);
int32_t trt_elementwise(TrtBuild* b, int32_t operation, int32_t x, int32_t y, TrtMessage* message);
int32_t trt_unary(TrtBuild* b, int32_t operation, int32_t x, TrtMessage* message);
int32_t trt_gelu_tanh(TrtBuild* b, int32_t x, TrtMessage* message);
int32_t trt_mean_last(TrtBuild* b, int32_t x, TrtMessage* message);
int32_t trt_softmax_last(TrtBuild* b, int32_t x, TrtMessage* message);
int32_t trt_reshape(TrtBuild* b, int32_t x, int32_t rank, int64_t const* shape, TrtMessage* message);
int32_t trt_transpose(TrtBuild* b, int32_t x, int32_t rank, int32_t const* order, TrtMessage* message);
int32_t trt_slice(TrtBuild* b, int32_t x, int32_t rank, int64_t const* start, int64_t const* size, TrtMessage* message);
int32_t trt_concat(TrtBuild* b, int32_t const* parts, int32_t count, int32_t axis, TrtMessage* message);
int32_t trt_quantize(TrtBuild* b, int32_t x, int32_t scale, int32_t axis, TrtMessage* message);
int32_t trt_dequantize(TrtBuild* b, int32_t x, int32_t scale, int32_t axis, int32_t dtype, TrtMessage* message);

int32_t trt_output(TrtBuild* b, int32_t x, char const* name, TrtMessage* message);
// What TensorRT takes the tensor for; `shape` has room for 8.
int32_t trt_describe(TrtBuild* b, int32_t x, int32_t* dtype, int32_t* rank, int64_t* shape, TrtMessage* message);

// TensorRT-RTX only: build for this compute capability (120 for 12.0) instead of the present GPU.
int32_t trt_set_compute_capability(TrtBuild* b, int32_t capability, TrtMessage* message);
// Classic TensorRT only (RTX has none: nothing happens). `data` may be of an earlier build, or empty.
int32_t trt_set_timing_cache(TrtBuild* b, void const* data, size_t size, TrtMessage* message);
// Builds. `cache` (the timing cache) may come back null; both plans are the caller's.
int32_t trt_build(TrtBuild* b, TrtProgress progress, void* user, TrtPlan** plan, TrtPlan** cache, TrtMessage* message);
void const* trt_plan_data(TrtPlan const* plan, size_t* size);
void trt_plan_delete(TrtPlan* plan);

// Needs a GPU. The plan's memory may go once this has returned.
int32_t trt_engine_new(TrtLibrary* library, void const* data, size_t size, TrtEngine** engine, TrtMessage* message);
void trt_engine_delete(TrtEngine* engine);
int32_t trt_engine_tensors(TrtEngine const* engine);
// `name` lives as long as the engine.
int32_t trt_engine_tensor(TrtEngine const* engine, int32_t index, char const** name, int32_t* is_input, int32_t* dtype,
    int32_t* rank, int64_t* shape, TrtMessage* message);
int32_t trt_engine_bind(TrtEngine* engine, char const* name, uint64_t address, TrtMessage* message);
// Puts one run on `stream` (a CUstream). Every tensor must be bound.
int32_t trt_engine_enqueue(TrtEngine* engine, void* stream, TrtMessage* message);
}
