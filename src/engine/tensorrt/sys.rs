//! Level 1: the functions of `shim/shim.h`, as they are.

use std::ffi::{c_char, c_void};

/// One line about a failure.
#[repr(C)]
pub struct Message {
    pub text: [c_char; 1024],
}

/// An opened library.
#[repr(C)]
pub struct Library {
    _opaque: [u8; 0],
}

/// A network being defined.
#[repr(C)]
pub struct Build {
    _opaque: [u8; 0],
}

/// Memory that TensorRT made.
#[repr(C)]
pub struct Plan {
    _opaque: [u8; 0],
}

/// A plan ready to run.
#[repr(C)]
pub struct Engine {
    _opaque: [u8; 0],
}

pub type Log = extern "C" fn(*mut c_void, i32, *const c_char);
pub type Progress = extern "C" fn(*mut c_void, *const c_char, i32, i32) -> i32;

unsafe extern "C" {
    pub fn trt_header_version() -> i32;
    pub fn trt_header_major() -> i32;
    pub fn trt_header_is_rtx() -> i32;

    pub fn trt_open(
        path: *const c_char,
        log: Log,
        user: *mut c_void,
        library: *mut *mut Library,
        version: *mut i32,
        message: *mut Message,
    ) -> i32;
    pub fn trt_close(library: *mut Library);

    pub fn trt_build_new(library: *mut Library, build: *mut *mut Build, message: *mut Message) -> i32;
    pub fn trt_build_delete(build: *mut Build);

    pub fn trt_input(
        b: *mut Build,
        name: *const c_char,
        dtype: i32,
        rank: i32,
        shape: *const i64,
        m: *mut Message,
    ) -> i32;
    pub fn trt_constant(
        b: *mut Build,
        dtype: i32,
        rank: i32,
        shape: *const i64,
        data: *const c_void,
        count: i64,
        m: *mut Message,
    ) -> i32;
    pub fn trt_cast(b: *mut Build, x: i32, dtype: i32, m: *mut Message) -> i32;
    pub fn trt_matmul(b: *mut Build, x: i32, y: i32, transpose_y: i32, m: *mut Message) -> i32;
    pub fn trt_elementwise(b: *mut Build, operation: i32, x: i32, y: i32, m: *mut Message) -> i32;
    pub fn trt_unary(b: *mut Build, operation: i32, x: i32, m: *mut Message) -> i32;
    pub fn trt_gelu_tanh(b: *mut Build, x: i32, m: *mut Message) -> i32;
    pub fn trt_mean_last(b: *mut Build, x: i32, m: *mut Message) -> i32;
    pub fn trt_softmax_last(b: *mut Build, x: i32, m: *mut Message) -> i32;
    pub fn trt_reshape(b: *mut Build, x: i32, rank: i32, shape: *const i64, m: *mut Message) -> i32;
    pub fn trt_transpose(b: *mut Build, x: i32, rank: i32, order: *const i32, m: *mut Message) -> i32;
    pub fn trt_slice(
        b: *mut Build,
        x: i32,
        rank: i32,
        start: *const i64,
        size: *const i64,
        m: *mut Message,
    ) -> i32;
    pub fn trt_concat(b: *mut Build, parts: *const i32, count: i32, axis: i32, m: *mut Message) -> i32;
    pub fn trt_quantize(b: *mut Build, x: i32, scale: i32, axis: i32, m: *mut Message) -> i32;
    pub fn trt_dequantize(b: *mut Build, x: i32, scale: i32, axis: i32, dtype: i32, m: *mut Message) -> i32;
    pub fn trt_output(b: *mut Build, x: i32, name: *const c_char, m: *mut Message) -> i32;
    pub fn trt_describe(
        b: *mut Build,
        x: i32,
        dtype: *mut i32,
        rank: *mut i32,
        shape: *mut i64,
        m: *mut Message,
    ) -> i32;

    pub fn trt_set_compute_capability(b: *mut Build, capability: i32, m: *mut Message) -> i32;
    pub fn trt_set_timing_cache(b: *mut Build, data: *const c_void, size: usize, m: *mut Message) -> i32;
    pub fn trt_build(
        b: *mut Build,
        progress: Progress,
        user: *mut c_void,
        plan: *mut *mut Plan,
        cache: *mut *mut Plan,
        m: *mut Message,
    ) -> i32;
    pub fn trt_plan_data(plan: *const Plan, size: *mut usize) -> *const c_void;
    pub fn trt_plan_delete(plan: *mut Plan);

    pub fn trt_engine_new(
        library: *mut Library,
        data: *const c_void,
        size: usize,
        engine: *mut *mut Engine,
        m: *mut Message,
    ) -> i32;
    pub fn trt_engine_delete(engine: *mut Engine);
    pub fn trt_engine_tensors(engine: *const Engine) -> i32;
    pub fn trt_engine_tensor(
        engine: *const Engine,
        index: i32,
        name: *mut *const c_char,
        is_input: *mut i32,
        dtype: *mut i32,
        rank: *mut i32,
        shape: *mut i64,
        m: *mut Message,
    ) -> i32;
    pub fn trt_engine_bind(engine: *mut Engine, name: *const c_char, address: u64, m: *mut Message) -> i32;
    pub fn trt_engine_enqueue(engine: *mut Engine, stream: *mut c_void, m: *mut Message) -> i32;
}
