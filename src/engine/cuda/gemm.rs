//! Matrix products by cuBLASLt: y = alpha x W^T (or x W) + beta c, bias and GELU, accumulated in f32, never in TF32.
//!
//! The algorithm of a shape is chosen once, by measuring those that the library proposes, and kept on disk by GPU,
//! driver and library version. No algorithm that sums in an order of chance is taken.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Write;
use std::fs;
use std::ptr;

use cudarc::cublaslt::sys::{self as lt, cublasStatus_t};

use super::compile::{cache_folder, fnv, keep};
use super::driver::{Buffer, Event, Gpu, failed};
use crate::engine::EngineError;

/// What is added after the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    None,
    Bias,
    BiasGelu,
}

/// A product of row-major matrices: x `[m, k]`, W `[n, k]` (or `[k, n]` if `kn`), y `[m, n]`, with leading dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub kn: bool,
    pub ldx: usize,
    pub ldw: usize,
    pub ldy: usize,
    /// Products, and the distance of their x, W and y in elements.
    pub batch: usize,
    pub strides: [usize; 3],
    /// y (and c) is f32, whatever x and W are.
    pub wide: bool,
    /// c is added.
    pub add: bool,
    pub epilogue: Epilogue,
    /// x and W are e4m3, and W's rows have multipliers.
    pub fp8: bool,
}

impl Shape {
    /// y = x W^T, densely.
    pub fn linear(m: usize, n: usize, k: usize) -> Self {
        Self {
            m,
            n,
            k,
            kn: false,
            ldx: k,
            ldw: k,
            ldy: n,
            batch: 1,
            strides: [0; 3],
            wide: false,
            add: false,
            epilogue: Epilogue::None,
            fp8: false,
        }
    }

    pub fn wide(self) -> Self {
        Self { wide: true, ..self }
    }

    pub fn add(self) -> Self {
        Self { add: true, ..self }
    }

    pub fn with(self, epilogue: Epilogue) -> Self {
        Self { epilogue, ..self }
    }
}

/// Where a product's matrices are. `c` is `y` where it is not said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    pub x: u64,
    pub w: u64,
    pub y: u64,
    pub c: u64,
    pub bias: u64,
    pub alpha: f32,
    /// f32 `[n]`, where the shape is `fp8`.
    pub multipliers: u64,
}

impl Operands {
    pub fn new(x: u64, w: u64, y: u64) -> Self {
        Self { x, w, y, c: y, bias: 0, alpha: 1.0, multipliers: 0 }
    }
}

struct Plan {
    desc: lt::cublasLtMatmulDesc_t,
    w: lt::cublasLtMatrixLayout_t,
    x: lt::cublasLtMatrixLayout_t,
    y: lt::cublasLtMatrixLayout_t,
    algo: lt::cublasLtMatmulAlgo_t,
}

/// The library and the plans made so far.
pub struct Gemm {
    handle: lt::cublasLtHandle_t,
    bf16: bool,
    workspace: Buffer,
    /// What rows of x are multiplied by where W's rows have multipliers.
    ones: Buffer,
    plans: HashMap<Shape, Plan>,
    /// Algorithms by shape, as on disk.
    known: HashMap<String, [u64; 8]>,
    file: String,
    grown: bool,
}

// SAFETY: handles may be used from any thread, one at a time.
unsafe impl Send for Gemm {}

const WORKSPACE: usize = 64 << 20;
/// Most rows of a product in e4m3.
pub const FP8_ROWS: usize = 1 << 16;
/// Algorithms measured per shape.
const CANDIDATES: usize = 64;

fn check(call: &str, status: cublasStatus_t) -> Result<(), EngineError> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(failed(call, format!("{status:?}")))
    }
}

impl Gemm {
    pub fn new(gpu: &Gpu, bf16: bool) -> Result<Self, EngineError> {
        let mut handle = ptr::null_mut();
        // SAFETY: a pointer to write to.
        check("cublasLtCreate", unsafe { lt::cublasLtCreate(&mut handle) })?;
        // SAFETY: no arguments.
        let version = unsafe { lt::cublasLtGetVersion() };
        let key = format!("{} {} {version} {}", gpu.name, gpu.driver, if bf16 { "bf16" } else { "f32" });
        let file = format!("gemm-{:016x}.txt", fnv(key.as_bytes()));
        let text =
            cache_folder().and_then(|folder| fs::read_to_string(folder.join(&file)).ok()).unwrap_or_default();
        let known = text.lines().filter_map(parse).collect();
        Ok(Self {
            handle,
            bf16,
            workspace: gpu.zeros(WORKSPACE)?,
            ones: gpu.buffer(&vec![1f32; FP8_ROWS])?,
            plans: HashMap::new(),
            known,
            file,
            grown: false,
        })
    }

    /// Puts a product on the stream. The first time of a shape measures algorithms: not while capturing.
    pub fn run(&mut self, gpu: &Gpu, shape: Shape, at: Operands) -> Result<(), EngineError> {
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(gpu, shape, at)?;
            self.plans.insert(shape, plan);
        }
        let plan = &self.plans[&shape];
        self.launch(gpu, plan, &plan.algo, shape, at)
    }

    /// Writes newly chosen algorithms to disk.
    pub fn keep(&mut self) {
        if std::mem::take(&mut self.grown) {
            let mut text = String::new();
            for (shape, algo) in &self.known {
                let words: Vec<String> = algo.iter().map(|word| format!("{word:x}")).collect();
                let _ = writeln!(text, "{shape} = {}", words.join(" ")); // to a string: cannot fail
            }
            keep(&self.file, text.as_bytes());
        }
    }

    fn launch(
        &self,
        gpu: &Gpu,
        plan: &Plan,
        algo: &lt::cublasLtMatmulAlgo_t,
        shape: Shape,
        at: Operands,
    ) -> Result<(), EngineError> {
        let beta = f32::from(u8::from(shape.add));
        // SAFETY: descriptors live in `plan`; addresses are the engine's buffers, as large as the shape says; alpha and
        // beta are read before the call returns.
        let status = unsafe {
            if shape.epilogue != Epilogue::None {
                set(
                    plan.desc,
                    lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                    &at.bias,
                )?;
            }
            if shape.fp8 {
                use lt::cublasLtMatmulDescAttributes_t as D;
                set(plan.desc, D::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &at.multipliers)?;
                set(plan.desc, D::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &self.ones.address)?;
            }
            lt::cublasLtMatmul(
                self.handle,
                plan.desc,
                ptr::from_ref(&at.alpha).cast(),
                at.w as *const c_void,
                plan.w,
                at.x as *const c_void,
                plan.x,
                ptr::from_ref(&beta).cast(),
                at.c as *const c_void,
                plan.y,
                at.y as *mut c_void,
                plan.y,
                algo,
                self.workspace.address as *mut c_void,
                WORKSPACE,
                gpu.stream.cast(),
            )
        };
        check("cublasLtMatmul", status).map_err(|e| failed("cublasLtMatmul", format!("{e} for {shape:?}")))
    }

    fn plan(&mut self, gpu: &Gpu, shape: Shape, at: Operands) -> Result<Plan, EngineError> {
        use lt::cublasLtMatmulDescAttributes_t as D;
        use lt::cublasLtMatmulPreferenceAttributes_t as P;
        let narrow = if self.bf16 { lt::cudaDataType_t::CUDA_R_16BF } else { lt::cudaDataType_t::CUDA_R_32F };
        let operand = if shape.fp8 { lt::cudaDataType_t::CUDA_R_8F_E4M3 } else { narrow };
        let out = if shape.wide { lt::cudaDataType_t::CUDA_R_32F } else { narrow };
        let mut desc = ptr::null_mut();
        // SAFETY: handles are written before they are read, attributes have the sizes that the library documents.
        unsafe {
            check(
                "cublasLtMatmulDescCreate",
                lt::cublasLtMatmulDescCreate(
                    &mut desc,
                    lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    lt::cudaDataType_t::CUDA_R_32F,
                ),
            )?;
            // The library is column-major: what we call W is its A, x its B.
            let transpose: i32 = i32::from(!shape.kn);
            set(desc, D::CUBLASLT_MATMUL_DESC_TRANSA, &transpose)?;
            let epilogue = match shape.epilogue {
                Epilogue::None => lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
                Epilogue::Bias => lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
                Epilogue::BiasGelu => lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_BIAS,
            };
            set(desc, D::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            if shape.fp8 {
                let fast: i8 = 1; // sums a little less exactly, far more so than e4m3's own steps
                set(desc, D::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast)?;
                let each = lt::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
                set(desc, D::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &each)?;
                set(desc, D::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &each)?;
                set(desc, D::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &at.multipliers)?;
                set(desc, D::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &self.ones.address)?;
            }
            if shape.epilogue != Epilogue::None {
                set(desc, D::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at.bias)?;
                set(desc, D::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &out)?;
            }
        }
        let (rows, columns) = if shape.kn { (shape.n, shape.k) } else { (shape.k, shape.n) };
        let w = layout(operand, rows, columns, shape.ldw, shape.batch, shape.strides[1])?;
        let x = layout(operand, shape.k, shape.m, shape.ldx, shape.batch, shape.strides[0])?;
        let y = layout(out, shape.n, shape.m, shape.ldy, shape.batch, shape.strides[2])?;
        let key = format!("{shape:?}");
        let mut plan = Plan { desc, w, x, y, algo: lt::cublasLtMatmulAlgo_t { data: [0; 8] } };
        if let Some(&data) = self.known.get(&key) {
            let algo = lt::cublasLtMatmulAlgo_t { data };
            // SAFETY: result is a plain C structure that the library fills.
            let checked = unsafe {
                let mut result: lt::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
                lt::cublasLtMatmulAlgoCheck(self.handle, desc, w, x, y, y, &algo, &mut result)
            };
            if checked == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
                return Ok(Plan { algo, ..plan });
            }
        }
        // SAFETY: as above; the results are plain C structures, as many as the library is told.
        let found = unsafe {
            let mut preference = ptr::null_mut();
            check("cublasLtMatmulPreferenceCreate", lt::cublasLtMatmulPreferenceCreate(&mut preference))?;
            let prefer = |attribute, value: *const c_void, size| {
                check(
                    "cublasLtMatmulPreferenceSetAttribute",
                    lt::cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, size),
                )
            };
            prefer(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, ptr::from_ref(&WORKSPACE).cast(), 8)?;
            let schemes: u32 = 2 | 4; // partial sums through the workspace: always in one order
            prefer(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, ptr::from_ref(&schemes).cast(), 4)?;
            let mut results: [lt::cublasLtMatmulHeuristicResult_t; CANDIDATES] = std::mem::zeroed();
            let mut count = 0;
            let status = lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc,
                w,
                x,
                y,
                y,
                preference,
                CANDIDATES as i32,
                results.as_mut_ptr(),
                &mut count,
            );
            lt::cublasLtMatmulPreferenceDestroy(preference);
            check("cublasLtMatmulAlgoGetHeuristic", status)
                .map_err(|e| failed("cublasLtMatmulAlgoGetHeuristic", format!("{e} for {shape:?}")))?;
            results[..count as usize].to_vec()
        };
        let mut best = f64::INFINITY;
        for result in found.iter().filter(|r| r.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS) {
            if let Ok(ms) = self.measure(gpu, &plan, &result.algo, shape, at)
                && ms < best
            {
                best = ms;
                plan.algo = result.algo;
            }
        }
        if best.is_infinite() {
            return Err(failed("cublasLtMatmulAlgoGetHeuristic", format!("no algorithm for {shape:?}")));
        }
        tracing::debug!(
            "{:.1} us, {:.0} TFLOP/s: {shape:?}",
            best * 1e3,
            2e-9 * (shape.batch * shape.m * shape.n * shape.k) as f64 / best
        );
        self.known.insert(key, plan.algo.data);
        self.grown = true;
        Ok(plan)
    }

    /// Milliseconds of one run, the least of a few rounds. Overwrites y.
    fn measure(
        &self,
        gpu: &Gpu,
        plan: &Plan,
        algo: &lt::cublasLtMatmulAlgo_t,
        shape: Shape,
        at: Operands,
    ) -> Result<f64, EngineError> {
        const RUNS: usize = 5;
        let (start, end) = (Event::new()?, Event::new()?);
        let mut best = f64::INFINITY;
        self.launch(gpu, plan, algo, shape, at)?;
        for _ in 0..3 {
            gpu.mark(&start, false)?;
            for _ in 0..RUNS {
                self.launch(gpu, plan, algo, shape, at)?;
            }
            gpu.mark(&end, false)?;
            gpu.synchronize()?;
            best = best.min(end.ms_since(&start)? / RUNS as f64);
        }
        Ok(best)
    }
}

/// SAFETY of callers: `value` is of the type that the library documents for `attribute`.
unsafe fn set<V>(
    desc: lt::cublasLtMatmulDesc_t,
    attribute: lt::cublasLtMatmulDescAttributes_t,
    value: &V,
) -> Result<(), EngineError> {
    // SAFETY: the value is read before the call returns.
    let status = unsafe {
        lt::cublasLtMatmulDescSetAttribute(desc, attribute, ptr::from_ref(value).cast(), size_of::<V>())
    };
    check("cublasLtMatmulDescSetAttribute", status)
}

fn layout(
    kind: lt::cudaDataType_t,
    rows: usize,
    columns: usize,
    ld: usize,
    batch: usize,
    stride: usize,
) -> Result<lt::cublasLtMatrixLayout_t, EngineError> {
    use lt::cublasLtMatrixLayoutAttribute_t as L;
    let mut layout = ptr::null_mut();
    let (count, stride) = (batch as i32, stride as i64);
    // SAFETY: the handle is written before it is read; the attributes have the documented sizes.
    unsafe {
        check(
            "cublasLtMatrixLayoutCreate",
            lt::cublasLtMatrixLayoutCreate(&mut layout, kind, rows as u64, columns as u64, ld as i64),
        )?;
        for (attribute, value, size) in [
            (L::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, ptr::from_ref(&count).cast::<c_void>(), 4),
            (L::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, ptr::from_ref(&stride).cast(), 8),
        ] {
            check(
                "cublasLtMatrixLayoutSetAttribute",
                lt::cublasLtMatrixLayoutSetAttribute(layout, attribute, value, size),
            )?;
        }
    }
    Ok(layout)
}

/// `shape = eight hexadecimal words`
fn parse(line: &str) -> Option<(String, [u64; 8])> {
    let (shape, words) = line.split_once(" = ")?;
    let words: Vec<u64> = words.split(' ').map_while(|word| u64::from_str_radix(word, 16).ok()).collect();
    Some((shape.to_owned(), words.try_into().ok()?))
}
