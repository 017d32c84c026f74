//! A stream with what is put on it: kernels, matrix products and their scratch memory.
//!
//! Vision has one, prefix and denoising share another, so that they may run side by side.

use std::cell::Cell;
use std::collections::HashMap;

use super::compile::cubin;
use super::driver::{Arg, Event, Gpu, Kernel, Launch, failed};
use super::fp8;
use super::gemm::{Gemm, Operands, Shape};
use super::heads;
use super::load::Weight;
use super::product;
use crate::engine::EngineError;
use crate::engine::probe::Tap;

/// Sources, compiled together.
pub const STAGES: &[&str] = &[include_str!("kernels/element.cu"), include_str!("kernels/stages.cu")];
/// The fused action expert.
pub const EXPERT: &[&str] = &[
    include_str!("kernels/element.cu"),
    include_str!("kernels/wgmma.cu"),
    include_str!("kernels/copies.cu"),
    include_str!("kernels/expert.cu"),
    include_str!("kernels/expert_90.cu"),
    include_str!("kernels/expert_attention.cu"),
];

/// Matrix products with what follows them.
pub const PRODUCTS: &[&str] = &[
    include_str!("kernels/element.cu"),
    include_str!("kernels/wgmma.cu"),
    include_str!("kernels/copies.cu"),
    include_str!("kernels/rings.cu"),
    include_str!("kernels/products.cu"),
    include_str!("kernels/rope.cu"),
    include_str!("kernels/heads.cu"),
];
/// The same of e4m3; [`E4M3`] is set for them.
pub const PRODUCTS_FP8: &[&str] = &[
    include_str!("kernels/element.cu"),
    include_str!("kernels/wgmma.cu"),
    include_str!("kernels/copies.cu"),
    include_str!("kernels/rings.cu"),
    include_str!("kernels/products_fp8.cu"),
    include_str!("kernels/heads.cu"),
];
/// What is set for products of e4m3, besides BF16.
pub const E4M3: &str = "E4M3";
/// Attention of vision and prefix.
pub const ATTENTION: &[&str] = &[
    include_str!("kernels/element.cu"),
    include_str!("kernels/wgmma.cu"),
    include_str!("kernels/copies.cu"),
    include_str!("kernels/attention.cu"),
];
/// Shared memory of `vision_attention`: keys and values of a head.
pub const VISION_SHARED: usize = 2 * 256 * 72 * 2;
/// Shared memory of `prefix_attention`: queries, five tiles of keys and values, counters.
pub const PREFIX_SHARED: usize = 28 * 8192 + 1024 + 128;
/// Queries of a block of it, and keys that it takes in at once.
pub const PREFIX_QUERIES: usize = 128;
pub const PREFIX_KEYS: usize = 64;

/// `prefix_attention` of so many blocks of queries, keys shared out in `parts`.
pub fn prefix_attention(blocks: usize, parts: usize) -> Launch {
    Launch::new([blocks, parts, 1], 384, PREFIX_SHARED).clusters(parts)
}

/// Kernels of `stages.cu`.
const STAGE_KERNELS: [&str; 16] = [
    "patches_u8",
    "patches_f32",
    "layer_norm",
    "rms_norm",
    "add_gated",
    "add_scaled",
    "multiply",
    "prefix_start",
    "split_rope",
    "softmax",
    "geglu",
    "gelu",
    "action_in",
    "action_out",
    "mask_and_positions",
    "transpose_values",
];

/// Kernels by name.
pub type Kernels = HashMap<&'static str, Kernel>;

/// A stream and what runs on it.
pub struct Lane {
    pub gpu: Gpu,
    gemm: Gemm,
    kernels: Kernels,
    /// What of [`product`]'s kernels runs at once.
    pub capacity: product::Capacity,
    /// How many clusters of `prefix_attention` of 3 and of 4 blocks the GPU has room for at once.
    pub prefix_clusters: [usize; 2],
    /// Weights and activations are bf16, else f32.
    pub bf16: bool,
    /// Kernels put on the stream so far.
    pub launched: Cell<usize>,
    /// Where evaluations begin, while somebody wants to know; and while a chunk that tells is put on the stream, whether
    /// into a graph.
    pub steps: Vec<Event>,
    pub marks_steps: Cell<Option<bool>>,
}

/// Kernels that were compiled together, by name.
pub fn compiled(
    gpu: &Gpu,
    sources: &[&str],
    defines: &[String],
    names: &[(&'static str, usize)],
) -> Result<Kernels, EngineError> {
    let module = gpu.module(&cubin(&sources.concat(), defines, gpu.arch)?)?;
    names.iter().map(|&(name, shared)| Ok((name, module.kernel(name, shared, gpu.arch >= 90)?))).collect()
}

impl Lane {
    pub fn new(gpu: Gpu, bf16: bool, fp8: bool) -> Result<Self, EngineError> {
        let mut names: Vec<(&'static str, usize)> = STAGE_KERNELS.iter().map(|&name| (name, 0)).collect();
        let mut defines = Vec::new();
        if bf16 {
            defines.push("BF16".to_owned());
            names.push(("geglu_8", 0));
            names.push(("split_rope_8", 0));
            names.push(("layer_norm_row", 0));
            names.push(("finish", 0));
            names.push(("rms_norm_row", 0));
            names.push(("norm_begins", 0));
        }
        let mut kernels = compiled(&gpu, STAGES, &defines, &names)?;
        if bf16 && gpu.arch >= 80 {
            let mut names = vec![("vision_attention", VISION_SHARED)];
            if gpu.arch == 90 {
                names.push(("prefix_attention", PREFIX_SHARED));
                let products = [product::kernels(), vec![heads::kernel()]].concat();
                kernels.extend(compiled(&gpu, PRODUCTS, &defines, &products)?);
                if fp8 {
                    let defines = [defines.clone(), vec![E4M3.to_owned()]].concat();
                    let products = [fp8::kernels(), vec![heads::kernel_fp8()]].concat();
                    kernels.extend(compiled(&gpu, PRODUCTS_FP8, &defines, &products)?);
                }
            }
            kernels.extend(compiled(&gpu, ATTENTION, &defines, &names)?);
        }
        let mut prefix_clusters = [0; 2];
        if let Some(&kernel) = kernels.get("prefix_attention") {
            for (count, blocks) in prefix_clusters.iter_mut().zip(3..) {
                *count = gpu.clusters_at_once(kernel, prefix_attention(1, blocks))?;
            }
        }
        Ok(Self {
            gemm: Gemm::new(&gpu, bf16)?,
            capacity: product::Capacity::new(&gpu, &kernels)?,
            kernels,
            prefix_clusters,
            gpu,
            bf16,
            launched: Cell::new(0),
            steps: Vec::new(),
            marks_steps: Cell::new(None),
        })
    }

    /// Whether this GPU has a kernel.
    pub fn has(&self, name: &str) -> bool {
        self.kernels.contains_key(name)
    }

    /// Bytes of an element of weights and activations.
    pub fn size(&self) -> usize {
        if self.bf16 { 2 } else { 4 }
    }

    /// Puts a kernel of `stages.cu` on the stream; it may start before the one before it has ended, and waits for it inside.
    pub fn launch(
        &self,
        name: &'static str,
        grid: [usize; 3],
        block: usize,
        shared: usize,
        args: &[Arg],
    ) -> Result<(), EngineError> {
        self.launch_shaped(name, Launch::new(grid, block, shared), args)
    }

    /// The same with clusters.
    pub fn launch_shaped(&self, name: &'static str, shape: Launch, args: &[Arg]) -> Result<(), EngineError> {
        self.launch_of(&self.kernels, name, shape, args)
    }

    /// The same for a kernel that was compiled elsewhere.
    pub fn launch_of(
        &self,
        kernels: &Kernels,
        name: &'static str,
        shape: Launch,
        args: &[Arg],
    ) -> Result<(), EngineError> {
        let Some(&kernel) = kernels.get(name) else {
            return Err(failed("cuLaunchKernelEx", format!("no kernel {name} was compiled")));
        };
        self.launched.set(self.launched.get() + 1);
        let launched = self.gpu.launch(kernel, shape, true, args);
        launched.map_err(|e| failed("cuLaunchKernelEx", format!("{name}: {e}")))
    }

    /// Puts a matrix product on the stream.
    pub fn product(&mut self, shape: Shape, at: Operands) -> Result<(), EngineError> {
        self.launched.set(self.launched.get() + 1);
        self.gemm.run(&self.gpu, shape, at)
    }

    /// An evaluation of the velocity begins.
    pub fn mark_step(&self, evaluation: usize) -> Result<(), EngineError> {
        match (self.steps.get(evaluation), self.marks_steps.get()) {
            (Some(event), Some(captured)) => self.gpu.mark(event, captured),
            _ => Ok(()),
        }
    }

    /// `x W^T` to y, `shape` as for bf16; of the rows of W from `first` on.
    pub fn through(
        &mut self,
        w: &Weight,
        first: usize,
        shape: Shape,
        at: Operands,
    ) -> Result<(), EngineError> {
        let size = if w.is_fp8() { 1 } else { self.size() };
        let at = Operands {
            w: w.values.address + (first * shape.k * size) as u64,
            multipliers: w.multipliers() + (first * 4) as u64,
            ..at
        };
        self.product(Shape { fp8: w.is_fp8(), ..shape }, at)
    }

    /// `y [rows, width]` in bf16 (+ bias in f32, if not 0; GELU) to bf16, or e4m3 times `inverse`.
    pub fn finish(
        &self,
        [y, bias, out]: [u64; 3],
        [rows, width]: [usize; 2],
        gelu: bool,
        inverse: f32,
    ) -> Result<(), EngineError> {
        let args =
            [y.into(), bias.into(), out.into(), width.into(), usize::from(gelu).into(), inverse.into()];
        self.launch("finish", [rows, 1, 1], 128, 0, &args)
    }

    /// Writes newly measured algorithms to disk.
    pub fn keep(&mut self) {
        self.gemm.keep();
    }

    /// `x [rows, width]` f32 to the tap, if it wants it.
    pub fn record_wide(
        &self,
        tap: &mut Tap,
        name: std::fmt::Arguments<'_>,
        x: u64,
        count: usize,
    ) -> Result<(), EngineError> {
        if tap.wants(name) {
            tap.record(name, &self.gpu.download::<f32>(x, count)?);
        }
        Ok(())
    }

    /// Activations in the lane's own type to the tap, if it wants them.
    pub fn record(
        &self,
        tap: &mut Tap,
        name: std::fmt::Arguments<'_>,
        x: u64,
        count: usize,
    ) -> Result<(), EngineError> {
        if !self.bf16 {
            return self.record_wide(tap, name, x, count);
        }
        if tap.wants(name) {
            let bits = self.gpu.download::<u16>(x, count)?;
            let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(u32::from(b) << 16)).collect();
            tap.record(name, &values);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_of_attentions_blocks_is_there() {
        // The older kernel is also that of GPUs whose blocks have at most 99 KiB.
        for (shared, most) in [(VISION_SHARED, 99), (PREFIX_SHARED, 227)] {
            assert!(shared <= most << 10, "{shared}");
        }
    }
}
