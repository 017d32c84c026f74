//! The CUDA driver: device, memory, kernels, events, graphs. Every call that fails is an error that names the call.
//!
//! One stream; one thread at a time. Called by the rest of `engine::cuda` only.

use std::ffi::{CStr, CString, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use crate::engine::EngineError;

/// The error of a CUDA call.
pub fn failed(call: &str, reason: impl ToString) -> EngineError {
    EngineError::Cuda { call: call.to_owned(), reason: reason.to_string() }
}

fn check(call: &str, result: CUresult) -> Result<(), EngineError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the driver sets the pointer to a static string, or leaves it null.
    let reason = unsafe {
        sys::cuGetErrorString(result, &mut text);
        if text.is_null() { format!("{result:?}") } else { CStr::from_ptr(text).to_string_lossy().into() }
    };
    Err(failed(call, format!("{reason} ({result:?})")))
}

/// Calls a driver function and names it if it fails.
macro_rules! cu {
    ($name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: arguments are handles and addresses that this file made and keeps alive, or locals that outlive the call.
        check(stringify!($name), unsafe { sys::$name($($arg),*) })
    };
}

/// A GPU, its context and the engine's stream.
pub struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub stream: sys::CUstream,
    /// As `nvidia-smi` has it.
    pub name: String,
    /// Compute capability, 90 for 9.0.
    pub arch: i32,
    /// Multiprocessors.
    pub processors: i32,
    /// Most shared memory of a block.
    pub shared: i32,
    /// Driver's CUDA version, 13000 for 13.0.
    pub driver: i32,
}

// SAFETY: a context may be used from any thread that makes it current, which `bind` does at every entry of the engine.
unsafe impl Send for Gpu {}

impl Gpu {
    /// Why there is no GPU to be used, in one line; `None` if there is one.
    pub fn missing() -> Option<String> {
        // SAFETY: looks for the libraries, calls nothing in them.
        let (driver, blas, compiler) = unsafe {
            (
                sys::is_culib_present(),
                cudarc::cublaslt::sys::is_culib_present(),
                cudarc::nvrtc::sys::is_culib_present(),
            )
        };
        if !driver {
            return Some("no NVIDIA driver on this machine (libcuda is missing)".into());
        }
        let mut count = 0;
        if let Err(e) = cu!(cuInit(0)).and_then(|()| cu!(cuDeviceGetCount(&mut count))) {
            return Some(e.to_string());
        }
        if count == 0 {
            return Some("the NVIDIA driver sees no GPU".into());
        }
        for (there, library) in [(blas, "libcublasLt"), (compiler, "libnvrtc")] {
            if !there {
                return Some(format!("{library} is missing: install the CUDA toolkit's run-time libraries"));
            }
        }
        None
    }

    /// The first GPU.
    pub fn open() -> Result<Self, EngineError> {
        if let Some(reason) = Self::missing() {
            return Err(EngineError::NoGpu(reason));
        }
        let (mut device, mut context, mut driver) = (0, ptr::null_mut(), 0);
        cu!(cuDeviceGet(&mut device, 0))?;
        cu!(cuDriverGetVersion(&mut driver))?;
        cu!(cuDevicePrimaryCtxRetain(&mut context, device))?;
        cu!(cuCtxSetCurrent(context))?;
        let mut name = [0; 128];
        cu!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device))?;
        // SAFETY: the buffer is larger than what the driver may write, so its last byte is 0.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let (mut least, mut greatest) = (0, 0);
        cu!(cuCtxGetStreamPriorityRange(&mut least, &mut greatest))?;
        let attribute = |which| {
            let mut value = 0;
            cu!(cuDeviceGetAttribute(&mut value, which, device)).map(|()| value)
        };
        Ok(Self {
            arch: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? * 10
                + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            stream: new_stream(least)?,
            device,
            context,
            name,
            driver,
        })
    }

    /// Where it is plugged in, as `0000:3b:00.0`.
    pub fn bus(&self) -> Result<String, EngineError> {
        let mut bus = [0; 32];
        cu!(cuDeviceGetPCIBusId(bus.as_mut_ptr(), bus.len() as i32 - 1, self.device))?;
        // SAFETY: the buffer is larger than what the driver may write, so its last byte is 0.
        Ok(unsafe { CStr::from_ptr(bus.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// The same GPU with a stream of its own, before which the first one steps back.
    pub fn another_stream(&self) -> Result<Self, EngineError> {
        let (mut context, mut least, mut greatest) = (ptr::null_mut(), 0, 0);
        cu!(cuDevicePrimaryCtxRetain(&mut context, self.device))?;
        cu!(cuCtxGetStreamPriorityRange(&mut least, &mut greatest))?;
        Ok(Self { context, stream: new_stream(greatest)?, name: self.name.clone(), ..*self })
    }

    /// Makes the context the calling thread's.
    pub fn bind(&self) -> Result<(), EngineError> {
        cu!(cuCtxSetCurrent(self.context))
    }

    /// Waits for everything on the stream.
    pub fn synchronize(&self) -> Result<(), EngineError> {
        cu!(cuStreamSynchronize(self.stream))
    }

    /// Bytes of device memory: (free, all).
    pub fn memory(&self) -> Result<(usize, usize), EngineError> {
        let (mut free, mut all) = (0, 0);
        cu!(cuMemGetInfo_v2(&mut free, &mut all))?;
        Ok((free, all))
    }

    /// Device memory, all zeros.
    pub fn zeros(&self, bytes: usize) -> Result<Buffer, EngineError> {
        let mut address = 0;
        let bytes = bytes.max(16);
        cu!(cuMemAlloc_v2(&mut address, bytes)).map_err(|e| match e {
            EngineError::Cuda { call, reason } => {
                let free = self.memory().map_or(0, |(free, _)| free);
                let asked = format!("asked for {} MiB, {} MiB are free", bytes >> 20, free >> 20);
                failed(&call, format!("{reason}: {asked}; end what else uses the GPU"))
            }
            other => other,
        })?;
        let buffer = Buffer { address, bytes };
        cu!(cuMemsetD8Async(address, 0, bytes, self.stream))?;
        Ok(buffer)
    }

    /// Copies host values to device memory and waits for it.
    pub fn upload_to<V: bytemuck::Pod>(&self, to: u64, values: &[V]) -> Result<(), EngineError> {
        cu!(cuMemcpyHtoDAsync_v2(to, values.as_ptr().cast::<c_void>(), size_of_val(values), self.stream))?;
        self.synchronize()
    }

    /// New device memory with these values.
    pub fn buffer<V: bytemuck::Pod>(&self, values: &[V]) -> Result<Buffer, EngineError> {
        let buffer = self.zeros(size_of_val(values))?;
        self.upload_to(buffer.address, values)?;
        Ok(buffer)
    }

    /// Copies from pinned host memory without waiting: the caller leaves it alone until the stream has been waited for.
    pub fn upload_later(&self, to: u64, from: &Pinned, bytes: usize) -> Result<(), EngineError> {
        assert!(bytes <= from.bytes, "invariant of the engine: staging is large enough");
        cu!(cuMemcpyHtoDAsync_v2(to, from.address, bytes, self.stream))
    }

    /// Copies to pinned host memory without waiting.
    pub fn download_later(&self, to: &Pinned, from: u64, bytes: usize) -> Result<(), EngineError> {
        assert!(bytes <= to.bytes, "invariant of the engine: staging is large enough");
        cu!(cuMemcpyDtoHAsync_v2(to.address, from, bytes, self.stream))
    }

    /// Device values to the host, after everything on the stream.
    pub fn download<V: bytemuck::Pod>(&self, from: u64, count: usize) -> Result<Vec<V>, EngineError> {
        let mut values = vec![V::zeroed(); count];
        let bytes = size_of_val(values.as_slice());
        cu!(cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast::<c_void>(), from, bytes, self.stream))?;
        self.synchronize()?;
        Ok(values)
    }

    /// Device to device, in stream order.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), EngineError> {
        cu!(cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream))
    }

    /// Loads a compiled module.
    pub fn module(&self, cubin: &[u8]) -> Result<Module, EngineError> {
        let mut module = ptr::null_mut();
        cu!(cuModuleLoadData(&mut module, cubin.as_ptr().cast::<c_void>()))?;
        Ok(Module(module))
    }

    /// Launches a kernel. `overlap`: it may start before the kernel before it has ended, and waits for it inside.
    pub fn launch(
        &self,
        kernel: Kernel,
        shape: Launch,
        overlap: bool,
        args: &[Arg],
    ) -> Result<(), EngineError> {
        let mut values: Vec<*mut c_void> = args
            .iter()
            .map(|arg| match arg {
                Arg::Address(a) => ptr::from_ref(a).cast_mut().cast(),
                Arg::Int(i) => ptr::from_ref(i).cast_mut().cast(),
                Arg::Float(f) => ptr::from_ref(f).cast_mut().cast(),
                Arg::Map(Map(map)) => ptr::from_ref(map).cast_mut().cast(),
            })
            .collect();
        self.configured(shape, overlap, |config| {
            cu!(cuLaunchKernelEx(config, kernel.0, values.as_mut_ptr(), ptr::null_mut()))
        })
    }

    /// How many clusters of a kernel there is room for at once, if nothing else runs.
    pub fn clusters_at_once(&self, kernel: Kernel, shape: Launch) -> Result<usize, EngineError> {
        let mut count = 0;
        self.configured(shape, false, |config| {
            cu!(cuOccupancyMaxActiveClusters(&mut count, kernel.0, config))
        })?;
        Ok(count.max(0) as usize)
    }

    /// A launch as the driver wants it described.
    fn configured<T>(&self, shape: Launch, overlap: bool, then: impl FnOnce(&sys::CUlaunchConfig) -> T) -> T {
        // SAFETY: every bit pattern of these plain C structures is valid, and the attribute's identity says which field
        // holds.
        let mut attributes: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        if overlap && self.arch >= 90 {
            attributes[count].id =
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        if shape.cluster > 1 {
            attributes[count].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes[count].value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: shape.cluster as u32, z: 1 };
            count += 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid[0] as u32,
            gridDimY: shape.grid[1] as u32,
            gridDimZ: shape.grid[2] as u32,
            blockDimX: shape.block as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared as u32,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count as u32,
        };
        then(&config)
    }

    /// From here on, what is put on the stream is recorded instead of run.
    pub fn begin_capture(&self) -> Result<Capture, EngineError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        cu!(cuStreamBeginCapture_v2(self.stream, mode)).map(|()| Capture(()))
    }

    /// What was recorded since, as a graph. `worked`: how the recording went.
    pub fn end_capture(
        &self,
        _capture: Capture,
        worked: Result<(), EngineError>,
    ) -> Result<Graph, EngineError> {
        let mut graph = ptr::null_mut();
        let ended = cu!(cuStreamEndCapture(self.stream, &mut graph));
        worked?;
        ended?;
        let (mut exec, mut nodes) = (ptr::null_mut(), 0);
        let made = cu!(cuGraphGetNodes(graph, ptr::null_mut(), &mut nodes))
            .and_then(|()| cu!(cuGraphInstantiateWithFlags(&mut exec, graph, 0)));
        cu!(cuGraphDestroy(graph))?;
        made.map(|()| Graph { exec, nodes })
    }

    /// Starts a graph.
    pub fn start(&self, graph: &Graph) -> Result<(), EngineError> {
        cu!(cuGraphLaunch(graph.exec, self.stream))
    }

    /// Marks a point in time, also inside a graph.
    pub fn mark(&self, event: &Event, captured: bool) -> Result<(), EngineError> {
        let flags = if captured { sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as u32 } else { 0 };
        cu!(cuEventRecordWithFlags(event.0, self.stream, flags))
    }

    /// What comes later on this stream waits for `event`, which another one has been told to mark.
    pub fn wait_for(&self, event: &Event) -> Result<(), EngineError> {
        cu!(cuStreamWaitEvent(self.stream, event.0, 0))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Nothing can be done about an error here.
        let _ = cu!(cuStreamDestroy_v2(self.stream));
        let _ = cu!(cuDevicePrimaryCtxRelease_v2(self.device));
    }
}

fn new_stream(priority: i32) -> Result<sys::CUstream, EngineError> {
    let (mut stream, flags) = (ptr::null_mut(), sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32);
    cu!(cuStreamCreateWithPriority(&mut stream, flags, priority)).map(|()| stream)
}

/// How many threads a kernel has, and what they share.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Blocks.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub block: usize,
    /// Dynamic shared memory of a block, bytes.
    pub shared: usize,
    /// Blocks, along y, that see each other's shared memory.
    pub cluster: usize,
}

impl Launch {
    pub fn new(grid: [usize; 3], block: usize, shared: usize) -> Self {
        Self { grid, block, shared, cluster: 1 }
    }

    pub fn clusters(self, cluster: usize) -> Self {
        Self { cluster, ..self }
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// Device memory.
    Address(u64),
    /// `int`.
    Int(i32),
    /// `float`.
    Float(f32),
    /// A matrix, as the tensor copy engine sees it.
    Map(Map),
}

/// What the tensor copy engine must know of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Map(sys::CUtensorMap);

/// A matrix of elements of `size` bytes (1 or 2), rows one after the other, fetched in boxes of `box_rows` rows by
/// `box_bytes`: 128, swizzled, or 16. What lies beyond it reads as zeros.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub address: u64,
    pub rows: usize,
    pub columns: usize,
    pub size: usize,
    pub box_rows: usize,
    pub box_bytes: usize,
}

impl Matrix {
    pub fn map(&self) -> Result<Map, EngineError> {
        use sys::CUtensorMapDataType_enum as Kind;
        let kind = match self.size {
            1 => Kind::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            _ => Kind::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        // SAFETY: every bit pattern of this plain C structure is valid.
        let mut map: sys::CUtensorMap = unsafe { std::mem::zeroed() };
        let sizes = [self.columns as u64, self.rows as u64];
        let pitch = [(self.columns * self.size) as u64];
        let part = [(self.box_bytes / self.size) as u32, self.box_rows as u32];
        let swizzle = match self.box_bytes {
            128 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            _ => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE,
        };
        cu!(cuTensorMapEncodeTiled(
            &mut map,
            kind,
            2,
            self.address as *mut c_void,
            sizes.as_ptr(),
            pitch.as_ptr(),
            part.as_ptr(),
            [1, 1].as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ))?;
        Ok(Map(map))
    }
}

impl From<u64> for Arg {
    fn from(address: u64) -> Self {
        Arg::Address(address)
    }
}

impl From<usize> for Arg {
    fn from(count: usize) -> Self {
        Arg::Int(count as i32)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Arg::Float(value)
    }
}

impl From<&Buffer> for Arg {
    fn from(buffer: &Buffer) -> Self {
        Arg::Address(buffer.address)
    }
}

/// Device memory of our own.
pub struct Buffer {
    pub address: u64,
    pub bytes: usize,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = cu!(cuMemFree_v2(self.address)); // waits for the device's work; nothing can be done about an error
    }
}

/// Page-locked host memory, zeroed.
pub struct Pinned {
    address: *mut c_void,
    bytes: usize,
}

// SAFETY: memory like any other, owned by this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(bytes: usize) -> Result<Self, EngineError> {
        let mut address = ptr::null_mut();
        cu!(cuMemAllocHost_v2(&mut address, bytes))?;
        // SAFETY: just allocated with this size.
        unsafe { ptr::write_bytes(address.cast::<u8>(), 0, bytes) };
        Ok(Self { address, bytes })
    }

    /// Where kernels find it.
    pub fn on_gpu(&self) -> Result<u64, EngineError> {
        let mut address = 0;
        cu!(cuMemHostGetDevicePointer_v2(&mut address, self.address, 0))?;
        Ok(address)
    }

    /// The bytes. Only between a wait for the stream and the next copy.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: ours, initialised, page-aligned, of this size; borrowed as this value is.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast::<u8>(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = cu!(cuMemFreeHost(self.address)); // nothing can be done about an error
    }
}

/// A loaded module; lives as long as the process.
pub struct Module(sys::CUmodule);

/// A kernel of a loaded module.
#[derive(Clone, Copy)]
pub struct Kernel(sys::CUfunction);

// SAFETY: a handle that may be used from any thread.
unsafe impl Send for Kernel {}

impl Module {
    /// A kernel, allowed `shared` bytes of dynamic shared memory, and clusters of more than 8 blocks.
    pub fn kernel(&self, name: &str, shared: usize, is_clustered: bool) -> Result<Kernel, EngineError> {
        let text = CString::new(name).map_err(|e| failed("cuModuleGetFunction", e))?;
        let mut function = ptr::null_mut();
        cu!(cuModuleGetFunction(&mut function, self.0, text.as_ptr()))
            .map_err(|e| failed("cuModuleGetFunction", format!("{name}: {e}")))?;
        if shared > 0 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            cu!(cuFuncSetAttribute(function, attribute, shared as i32))?;
        }
        if is_clustered {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
            cu!(cuFuncSetAttribute(function, attribute, 1))?;
            // All kernels divide a multiprocessor's memory alike: the next one can start beside the one before.
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            cu!(cuFuncSetAttribute(function, attribute, 100))?;
        }
        Ok(Kernel(function))
    }
}

impl Kernel {
    /// Leaves to the driver how a multiprocessor's memory is divided once a block of this kernel comes to an empty one.
    pub fn divides_anew(&self) -> Result<(), EngineError> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        cu!(cuFuncSetAttribute(self.0, attribute, -1)) // CU_SHAREDMEM_CARVEOUT_DEFAULT
    }
}

/// A recording under way.
#[must_use]
pub struct Capture(());

/// A captured sequence of work.
pub struct Graph {
    exec: sys::CUgraphExec,
    /// Kernels, copies and marks.
    pub nodes: usize,
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = cu!(cuGraphExecDestroy(self.exec)); // nothing can be done about an error
    }
}

// SAFETY: a handle that may be used from any thread, one at a time.
unsafe impl Send for Graph {}

/// A point in time on the stream.
pub struct Event(sys::CUevent);

// SAFETY: a handle that may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    pub fn new() -> Result<Self, EngineError> {
        let mut event = ptr::null_mut();
        cu!(cuEventCreate(&mut event, 0))?;
        Ok(Self(event))
    }

    /// Waits until it has passed.
    pub fn wait(&self) -> Result<(), EngineError> {
        cu!(cuEventSynchronize(self.0))
    }

    /// Milliseconds from `start` to this, both of which have passed.
    pub fn ms_since(&self, start: &Event) -> Result<f64, EngineError> {
        let mut ms = 0.0;
        cu!(cuEventElapsedTime_v2(&mut ms, start.0, self.0))?;
        Ok(f64::from(ms))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = cu!(cuEventDestroy_v2(self.0)); // nothing can be done about an error
    }
}
