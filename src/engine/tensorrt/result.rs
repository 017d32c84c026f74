//! Level 2: the shim's return codes and messages as results, its numbers as types.

use std::ffi::{CStr, c_char};

use super::error::TensorRtError;
use super::graph::Type;
use super::sys;

/// Calls `f` with room for a message; a negative code is an error with it.
pub fn call(f: impl FnOnce(*mut sys::Message) -> i32) -> Result<i32, TensorRtError> {
    let mut message = sys::Message { text: [0; 1024] };
    match f(&mut message) {
        code if code >= 0 => Ok(code),
        _ => {
            message.text[1023] = 0;
            // SAFETY: the array ends with 0.
            let text = unsafe { CStr::from_ptr(message.text.as_ptr()) };
            let line = text.to_string_lossy().split_whitespace().collect::<Vec<_>>().join(" ");
            Err(TensorRtError::Refused(line))
        }
    }
}

/// TensorRT's number of a type.
pub fn number(dtype: Type) -> i32 {
    match dtype {
        Type::F32 => 0,
        Type::F16 => 1,
        Type::Fp8 => 6,
        Type::Bf16 => 7,
    }
}

/// The type with that number; `None` if no stage has such a tensor.
pub fn of_number(number: i32) -> Option<Type> {
    [Type::F32, Type::F16, Type::Fp8, Type::Bf16].into_iter().find(|&dtype| self::number(dtype) == number)
}

/// Dimensions as TensorRT has them.
pub fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&n| n as i64).collect()
}

/// A name that C takes.
pub fn c_name(name: &str) -> Result<std::ffi::CString, TensorRtError> {
    std::ffi::CString::new(name).map_err(|e| TensorRtError::Refused(format!("{name:?}: {e}")))
}

/// A C string that may be null.
pub fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: TensorRT and the shim hand over strings that end with 0 and live during the call.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
