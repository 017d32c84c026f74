//! Own matrix products on Hopper, fused with what follows them (kernels/products.cu).
//!
//! Used where they were measured to be faster than the library's product and a kernel after it.

use super::driver::{Arg, Launch, Matrix};
use super::lane::Lane;
use super::load::Weight;
use crate::engine::EngineError;

/// Rows of a block's tile.
const ROWS: usize = 128;
/// Blocks of a cluster: they have different rows, and share the weights that they read.
const CLUSTER: usize = 2;
const THREADS: usize = 384;

/// A kernel: a block's tile has `n` rows of W; `stages` pieces of k are on their way.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    name: &'static str,
    n: usize,
    stages: usize,
    /// Gate and up in one tile, and blocks that work on several tiles.
    is_geglu: bool,
    /// x and W are e4m3.
    fp8: bool,
}

/// `GELU(x gate^T) * (x up^T)`, W = [gate; up], all bf16.
pub const GEGLU: Tile = Tile { name: "geglu_bf16", n: 256, stages: 4, is_geglu: true, fp8: false };
/// The same in e4m3.
pub const GEGLU_FP8: Tile = Tile { name: "geglu_fp8", n: 256, stages: 4, is_geglu: true, fp8: true };
/// `x W^T + bias` of e4m3 to bf16.
pub const BIAS_FP8: Tile = Tile { name: "bias_fp8", n: 160, stages: 5, is_geglu: false, fp8: true };
/// `GELU(x W^T + bias)` of e4m3 to e4m3.
pub const BIAS_GELU_FP8: Tile = Tile { name: "bias_gelu_fp8", n: 208, stages: 5, is_geglu: false, fp8: true };

/// Kernels of bf16.
pub const BF16: &[Tile] = &[GEGLU];
/// Kernels of e4m3.
pub const FP8: &[Tile] = &[GEGLU_FP8, BIAS_FP8, BIAS_GELU_FP8];

impl Tile {
    /// Its name and the shared memory of a block.
    pub fn kernel(&self) -> (&'static str, usize) {
        let waiting = if self.is_geglu { ROWS * (self.n / 2 * 2 + 16) } else { 0 };
        (self.name, self.stages * ((ROWS + self.n) * 128 + 16) + waiting)
    }

    /// Whether it may be used and is worth it: sizes fit, and, in bf16, few of the rows computed are padding.
    pub fn suits(&self, lane: &Lane, rows: usize, columns: usize, k: usize) -> bool {
        lane.has(self.name)
            && k.is_multiple_of(16)
            && columns.is_multiple_of(if self.is_geglu { self.n / 2 } else { 16 })
            && (self.fp8 || rows.next_multiple_of(ROWS * CLUSTER) * 10 <= rows * 11)
    }

    /// Puts it on the stream: x `[rows, k]` through `w` to y `[rows, columns]`; bias in bf16, or 0. `inverse`: 1 / scale
    /// of a y in e4m3.
    pub fn record(
        &self,
        lane: &Lane,
        w: &Weight,
        [x, y, bias]: [u64; 3],
        [rows, columns, k]: [usize; 3],
        inverse: f32,
    ) -> Result<(), EngineError> {
        let size = if self.fp8 { 1 } else { 2 };
        let (wide, w_rows) = if self.is_geglu { (self.n / 2, 2 * columns) } else { (self.n, columns) };
        let tiles = rows.div_ceil(ROWS * CLUSTER) * columns.div_ceil(wide);
        let clusters = if self.is_geglu { tiles.min(lane.gpu.processors as usize / CLUSTER) } else { tiles };
        let map = |address, rows, box_rows| {
            Matrix { address, rows, columns: k, size, box_rows }.map().map(Arg::Map)
        };
        let args = [
            map(x, rows, ROWS)?,
            map(w.values.address, w_rows, self.n / 2)?,
            rows.into(),
            columns.into(),
            (k * size).div_ceil(128).into(),
            y.into(),
            bias.into(),
            w.multipliers().into(),
            inverse.into(),
        ];
        let (name, shared) = self.kernel();
        let shape = Launch::new([clusters, CLUSTER, 1], THREADS, shared).clusters(CLUSTER);
        lane.launch_shaped(name, shape, &args)
    }
}
