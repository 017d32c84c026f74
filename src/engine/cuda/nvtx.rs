//! Named ranges for NVIDIA's profilers. Where NVIDIA's library for them is not installed, nothing happens.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use libloading::Library;

type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

/// Of CUDA 13, then of those before.
const NAMES: [&str; 3] = ["libnvtx3interop.so.1", "libnvtx3interop.so", "libnvToolsExt.so.1"];

/// The time from its making to its dropping, on this thread, bears a name.
pub struct Range(Pop);

impl Range {
    /// `None` where there is nobody to tell.
    pub fn new(name: &CStr) -> Option<Self> {
        static FUNCTIONS: OnceLock<Option<(Push, Pop)>> = OnceLock::new();
        let (push, pop) = (*FUNCTIONS.get_or_init(functions))?;
        // SAFETY: the library copies the name before it returns.
        unsafe { push(name.as_ptr()) };
        Some(Self(pop))
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: ends the range that `new` began; ranges are dropped in the reverse order on the thread that made them.
        unsafe { (self.0)() };
    }
}

fn functions() -> Option<(Push, Pop)> {
    // SAFETY: NVIDIA's library, whose loading only sets up its own tables; it stays loaded; the functions have the types
    // that its header declares.
    unsafe {
        let library = NAMES.into_iter().find_map(|name| Library::new(name).ok())?;
        let functions =
            (*library.get::<Push>(b"nvtxRangePushA\0").ok()?, *library.get::<Pop>(b"nvtxRangePop\0").ok()?);
        std::mem::forget(library);
        Some(functions)
    }
}
