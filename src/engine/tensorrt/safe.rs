//! Level 3: the library, networks being built and engines as owned values. The order of calls and the lifetimes that
//! TensorRT asks for are kept here.

use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::error::TensorRtError;
use super::graph::{Port, Type};
use super::result::{c_name, call, dims, number, of_number, text};
use super::sys;

/// `major.minor.patch` of TensorRT or TensorRT-RTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(i32);

/// An opened TensorRT.
pub struct Library {
    raw: NonNull<sys::Library>,
    version: Version,
}

// SAFETY: the shim's library holds a handle, three function pointers and a logger with a lock.
unsafe impl Send for Library {}
// SAFETY: as above; nothing in it changes but the logger's text, under its lock.
unsafe impl Sync for Library {}

/// A network being defined. Keeps the memory of its constants until it is dropped.
pub struct Build<'w> {
    raw: NonNull<sys::Build>,
    constants: Vec<Constant<'w>>,
    _library: Arc<Library>,
}

/// A constant's bytes: where the checkpoint has them, or converted.
pub enum Constant<'w> {
    /// In the checkpoint's mapping.
    There(&'w [u8]),
    /// Made.
    Made(Vec<u8>),
}

/// Memory that TensorRT made: a plan, or a timing cache.
pub struct Plan {
    raw: NonNull<sys::Plan>,
    _library: Arc<Library>,
}

/// An engine on the GPU, with everything that a run needs but its tensors.
pub struct Engine {
    raw: NonNull<sys::Engine>,
    _library: Arc<Library>,
}

// SAFETY: used by one thread at a time (`&mut`), which TensorRT allows to be another each time.
unsafe impl Send for Engine {}

/// A tensor of a network, by the shim's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor(i32);

extern "C" fn log(_: *mut c_void, severity: i32, line: *const std::ffi::c_char) {
    match severity {
        0..=1 => tracing::debug!("TensorRT error: {}", text(line)), // comes back as an error as well
        2 => tracing::debug!("TensorRT warning: {}", text(line)),
        _ => tracing::trace!("TensorRT: {}", text(line)),
    }
}

/// Hears of (phase, steps done, steps); from any thread.
pub type OnProgress<'a> = dyn Fn(&str, usize, usize) + Sync + 'a;

extern "C" fn progress(user: *mut c_void, phase: *const std::ffi::c_char, step: i32, steps: i32) -> i32 {
    // SAFETY: `Build::finish` hands over this reference and outlives the building.
    let on_progress = unsafe { &*user.cast::<&OnProgress<'_>>() };
    on_progress(&text(phase), step.max(0) as usize, steps.max(0) as usize);
    1
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
    }
}

impl Library {
    /// Opens the library that this program's headers are for: `TENSORRT_LIBRARY`, else by its usual names.
    pub fn open() -> Result<Arc<Self>, TensorRtError> {
        let names = match std::env::var("TENSORRT_LIBRARY") {
            Ok(path) => vec![path],
            Err(_) if Self::is_rtx() => vec!["libtensorrt_rtx.so.1".to_owned()],
            Err(_) => {
                // SAFETY: gives a constant.
                let major = unsafe { sys::trt_header_major() };
                // Another major version is tried for the sake of its refusal.
                let mut majors = vec![major];
                majors.extend([10, 11].into_iter().filter(|&other| other != major));
                majors.iter().map(|major| format!("libnvinfer.so.{major}")).collect()
            }
        };
        let mut reason = String::new();
        for name in &names {
            match Self::open_named(name) {
                Ok(library) => return Ok(Arc::new(library)),
                Err(TensorRtError::Refused(line)) if line.contains("cannot open shared object") => {
                    reason = line;
                }
                Err(e) => return Err(e),
            }
        }
        Err(TensorRtError::NoLibrary { tried: names.join(", "), reason })
    }

    fn open_named(name: &str) -> Result<Self, TensorRtError> {
        let path = c_name(name)?;
        let (mut raw, mut version) = (ptr::null_mut(), 0);
        // SAFETY: the path is a C string, the logger takes no user, the others are locals that outlive the call.
        call(|m| unsafe { sys::trt_open(path.as_ptr(), log, ptr::null_mut(), &mut raw, &mut version, m) })?;
        let raw = NonNull::new(raw).ok_or_else(|| TensorRtError::Refused(format!("{name}: no library")))?;
        Ok(Self { raw, version: Version(version) })
    }

    /// Whether this program was built for TensorRT-RTX.
    pub fn is_rtx() -> bool {
        // SAFETY: gives a constant.
        unsafe { sys::trt_header_is_rtx() != 0 }
    }

    /// Of the headers that this program was built with.
    pub fn header_version() -> Version {
        // SAFETY: gives a constant.
        Version(unsafe { sys::trt_header_version() })
    }

    /// Of the library.
    pub fn version(&self) -> Version {
        self.version
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: opened by `trt_open`, closed once; builds, plans and engines hold an `Arc` of it.
        unsafe { sys::trt_close(self.raw.as_ptr()) }
    }
}

impl Constant<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Constant::There(bytes) => bytes,
            Constant::Made(bytes) => bytes,
        }
    }
}

impl<'w> Build<'w> {
    /// An empty strongly typed network.
    pub fn new(library: &Arc<Library>) -> Result<Self, TensorRtError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the library is open, and this value keeps it so.
        call(|m| unsafe { sys::trt_build_new(library.raw.as_ptr(), &mut raw, m) })?;
        let raw = NonNull::new(raw).ok_or_else(|| TensorRtError::Refused("no network".into()))?;
        Ok(Self { raw, constants: Vec::new(), _library: library.clone() })
    }

    /// A tensor from outside.
    pub fn input(&mut self, name: &str, dtype: Type, shape: &[usize]) -> Result<Tensor, TensorRtError> {
        let (name, shape) = (c_name(name)?, dims(shape));
        self.made(|b, m| {
            // SAFETY: name and shape are locals of the length that is said.
            unsafe { sys::trt_input(b, name.as_ptr(), number(dtype), shape.len() as i32, shape.as_ptr(), m) }
        })
    }

    /// Numbers, which are kept.
    pub fn constant(
        &mut self,
        dtype: Type,
        shape: &[usize],
        data: Constant<'w>,
    ) -> Result<Tensor, TensorRtError> {
        let count = shape.iter().product::<usize>();
        if data.bytes().len() != count * dtype.size() {
            return Err(TensorRtError::Differs {
                what: "constant".into(),
                expected: format!("{} bytes", count * dtype.size()),
                found: format!("{} bytes", data.bytes().len()),
            });
        }
        // A `Vec`'s bytes stay where they are when it is moved.
        let (at, shape) = (data.bytes().as_ptr(), dims(shape));
        self.constants.push(data);
        self.made(|b, m| {
            let (rank, shape, count) = (shape.len() as i32, shape.as_ptr(), count as i64);
            // SAFETY: the data is as long as was checked, and `constants` keeps it until the network is gone.
            unsafe { sys::trt_constant(b, number(dtype), rank, shape, at.cast(), count, m) }
        })
    }

    /// A layer that the closure adds with one call of the shim.
    ///
    /// The closure gets this build; whatever pointers it passes on must be valid during the call.
    pub fn made(
        &mut self,
        add: impl FnOnce(*mut sys::Build, *mut sys::Message) -> i32,
    ) -> Result<Tensor, TensorRtError> {
        let raw = self.raw.as_ptr();
        call(|m| add(raw, m)).map(Tensor)
    }

    /// Names what comes out.
    pub fn output(&mut self, tensor: Tensor, name: &str) -> Result<(), TensorRtError> {
        let name = c_name(name)?;
        // SAFETY: the name is a C string.
        self.made(|b, m| unsafe { sys::trt_output(b, tensor.0, name.as_ptr(), m) }).map(|_| ())
    }

    /// What TensorRT takes a tensor for: its type and shape.
    pub fn describe(&mut self, tensor: Tensor) -> Result<(Option<Type>, Vec<i64>), TensorRtError> {
        let (mut dtype, mut rank, mut shape) = (0, 0, [0i64; 8]);
        self.made(|b, m| {
            // SAFETY: locals; the shape has room for as many dimensions as TensorRT has at most.
            unsafe { sys::trt_describe(b, tensor.0, &mut dtype, &mut rank, shape.as_mut_ptr(), m) }
        })?;
        Ok((of_number(dtype), shape[..rank.clamp(0, 8) as usize].to_vec()))
    }

    /// TensorRT-RTX only: build for this compute capability (120 for 12.0), GPU or not.
    pub fn for_compute_capability(&mut self, capability: i32) -> Result<(), TensorRtError> {
        // SAFETY: numbers only.
        self.made(|b, m| unsafe { sys::trt_set_compute_capability(b, capability, m) }).map(|_| ())
    }

    /// Uses what earlier builds measured.
    pub fn with_timing_cache(&mut self, cache: &[u8]) -> Result<(), TensorRtError> {
        let (data, size) = (cache.as_ptr().cast(), cache.len());
        // SAFETY: TensorRT copies the cache during the call.
        self.made(|b, m| unsafe { sys::trt_set_timing_cache(b, data, size, m) }).map(|_| ())
    }

    /// Builds: the plan, and what was measured.
    pub fn finish(self, on_progress: &OnProgress<'_>) -> Result<(Plan, Option<Plan>), TensorRtError> {
        let (mut plan, mut cache) = (ptr::null_mut(), ptr::null_mut());
        let mut user: &OnProgress<'_> = on_progress;
        let user = (&raw mut user).cast();
        // SAFETY: the callback's reference outlives the call; constants live in `self`.
        call(|m| unsafe { sys::trt_build(self.raw.as_ptr(), progress, user, &mut plan, &mut cache, m) })?;
        let own = |raw| NonNull::new(raw).map(|raw| Plan { raw, _library: self._library.clone() });
        let plan = own(plan).ok_or_else(|| TensorRtError::Refused("no plan".into()))?;
        Ok((plan, own(cache)))
    }
}

impl Tensor {
    /// The shim's number.
    pub fn index(self) -> i32 {
        self.0
    }
}

impl Drop for Build<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `trt_build_new`, deleted once; constants are dropped after this.
        unsafe { sys::trt_build_delete(self.raw.as_ptr()) }
    }
}

impl Plan {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        let mut size = 0;
        // SAFETY: the memory belongs to the plan and does not change while it lives.
        unsafe {
            let data = sys::trt_plan_data(self.raw.as_ptr(), &mut size);
            if data.is_null() { &[] } else { std::slice::from_raw_parts(data.cast(), size) }
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `trt_build`, deleted once.
        unsafe { sys::trt_plan_delete(self.raw.as_ptr()) }
    }
}

impl Engine {
    /// Puts a plan on the current context's GPU. The caller has seen that there is one: without, some versions of
    /// TensorRT hand out pointers to nothing.
    pub fn new(library: &Arc<Library>, plan: &[u8]) -> Result<Self, TensorRtError> {
        let mut raw = ptr::null_mut();
        let (data, size) = (plan.as_ptr().cast(), plan.len());
        // SAFETY: the plan is read during the call only.
        call(|m| unsafe { sys::trt_engine_new(library.raw.as_ptr(), data, size, &mut raw, m) })?;
        let raw = NonNull::new(raw).ok_or_else(|| TensorRtError::Refused("no engine".into()))?;
        Ok(Self { raw, _library: library.clone() })
    }

    /// What goes in (true) and comes out (false).
    pub fn ports(&self) -> Result<Vec<(bool, Port)>, TensorRtError> {
        // SAFETY: the engine lives.
        let count = unsafe { sys::trt_engine_tensors(self.raw.as_ptr()) };
        (0..count).map(|i| self.port(i)).collect()
    }

    fn port(&self, index: i32) -> Result<(bool, Port), TensorRtError> {
        let (mut name, mut is_input, mut dtype, mut rank, mut shape) = (ptr::null(), 0, 0, 0, [0i64; 8]);
        call(|m| {
            let shape = shape.as_mut_ptr();
            let raw = self.raw.as_ptr();
            // SAFETY: locals; the name lives as long as the engine.
            unsafe {
                sys::trt_engine_tensor(raw, index, &mut name, &mut is_input, &mut dtype, &mut rank, shape, m)
            }
        })?;
        let name = text(name);
        let dtype = of_number(dtype).ok_or_else(|| TensorRtError::Differs {
            what: name.clone(),
            expected: "a type of the stages".into(),
            found: format!("TensorRT's type {dtype}"),
        })?;
        let shape =
            shape[..rank.clamp(0, 8) as usize].iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
        Ok((is_input != 0, Port { name, dtype, shape }))
    }

    /// Where a tensor lies on the GPU; holds for every run until it is bound again.
    ///
    /// # Safety
    /// The memory is as large as the tensor, and stays until the last run that reads it has ended.
    pub unsafe fn bind(&self, name: &str, address: u64) -> Result<(), TensorRtError> {
        let name = c_name(name)?;
        // SAFETY: the name is a C string; the address is the caller's promise.
        call(|m| unsafe { sys::trt_engine_bind(self.raw.as_ptr(), name.as_ptr(), address, m) }).map(|_| ())
    }

    /// Puts a run on `stream`, after what is on it.
    ///
    /// # Safety
    /// `stream` is a stream of the context in which the engine was made, and every tensor is bound.
    pub unsafe fn enqueue(&self, stream: *mut c_void) -> Result<(), TensorRtError> {
        // SAFETY: the caller's promise.
        call(|m| unsafe { sys::trt_engine_enqueue(self.raw.as_ptr(), stream, m) }).map(|_| ())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: made by `trt_engine_new`, deleted once.
        unsafe { sys::trt_engine_delete(self.raw.as_ptr()) }
    }
}
